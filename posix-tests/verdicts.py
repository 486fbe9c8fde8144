"""What a test program's output means, and whether it is what we expected.  Pure functions.

A *case* is one program of an outside suite; it makes *checks*, numbered from 1.  Number 0 is the
case itself: its plan, its exit status, its time limit, what it leaves behind.

An *exclusion* is a check that is known to fail, with the reason.  It is held to: when the check
passes, or does not exist, that is as much of a surprise as a check that fails without one.
"""

import enum
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

WHOLE_CASE: Final = -1
"""In an exclusion: whichever checks of the case fail.  Written `*`."""
CHECKS_MAX: Final = 100_000
"""No plan is believed that promises more."""

_PLAN = re.compile(r"1\.\.(\d+)\s*(?:#\s*skip\S*\s*(.*))?$", re.IGNORECASE)
_RESULT = re.compile(r"(not )?ok\b\s*(\d+)?\s*(?:-\s*)?(.*)$")
_DIRECTIVE = re.compile(r"(?:^|\s)#\s*(todo|skip)\S*\s*(.*)$", re.IGNORECASE)


class Result(enum.Enum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    TODO = "todo"
    """The suite itself says that this does not work yet, and it did not."""


class Check(NamedTuple):
    number: int
    result: Result
    detail: str = ""


class Verdict(enum.Enum):
    """What is counted.  The last three are the ones that make a run fail."""

    PASSED = "passed"
    SKIPPED = "skipped"
    TODO = "todo"
    EXCLUDED = "excluded"
    FAILED = "failed"
    UNEXPECTED_PASS = "unexpected pass"
    STALE = "stale exclusion"


SURPRISES: Final = (Verdict.FAILED, Verdict.UNEXPECTED_PASS, Verdict.STALE)


class Finding(NamedTuple):
    case: str
    number: int
    verdict: Verdict
    detail: str = ""


Exclusions = Mapping[str, Mapping[int, str]]
"""Case → number of the check (or WHOLE_CASE) → reason."""


def read_tap(output: str) -> list[Check]:
    """The checks of a program that speaks TAP, in order of their numbers.

    Whatever breaks the protocol is a failure: no plan or two, a check that was promised and did
    not come, came twice or was not promised, and `Bail out!`.

    >>> [check.result.value for check in read_tap("1..3\\nok 1\\nnot ok 2 - why\\nok 3 # TODO x")]
    ['passed', 'failed', 'passed']
    """
    checks: dict[int, Check] = {}
    plans: list[int] = []
    trouble: list[str] = []
    skipped = None
    last = 0
    for line in output.splitlines():
        if plan := _PLAN.match(line):
            plans.append(int(plan[1]))
            if plans[-1] == 0:
                skipped = plan[2] or "no reason given"
        elif result := _RESULT.match(line):
            last = int(result[2]) if result[2] else last + 1
            if last in checks:
                trouble.append(f"check {last} came twice")
                failed = result[1] or checks[last].result is Result.FAILED
                checks[last] = _check(last, bool(failed), result[3])
            else:
                checks[last] = _check(last, bool(result[1]), result[3])
        elif line.startswith("Bail out!"):
            trouble.append(line)
    if not plans:
        trouble.append("no plan")
    elif len(plans) > 1:
        trouble.append(f"{len(plans)} plans")
    elif plans[0] > CHECKS_MAX:
        trouble.append(f"a plan of {plans[0]} checks")
    else:
        for number in range(1, plans[0] + 1):
            checks.setdefault(number, Check(number, Result.FAILED, "did not run"))
        if beyond := sorted(number for number in checks if not 0 < number <= plans[0]):
            trouble.append(f"plan of {plans[0]}, but also checks {beyond}")
    if skipped is not None and not checks and not trouble:
        return [Check(0, Result.SKIPPED, skipped)]
    if trouble:
        checks[0] = Check(0, Result.FAILED, "; ".join(trouble))
    return [checks[number] for number in sorted(checks)]


def _check(number: int, failed: bool, text: str) -> Check:
    if directive := _DIRECTIVE.search(text):
        if directive[1].lower() == "skip":
            return Check(number, Result.SKIPPED, directive[2])
        return Check(number, Result.TODO if failed else Result.PASSED, directive[2])
    return Check(number, Result.FAILED if failed else Result.PASSED, text)


def read_exclusions(text: str) -> dict[str, dict[int, str]]:
    """Lines of `case number  reason`; number may be `*`.  A line that begins with `#` is a comment.

    Raises `ValueError` naming the first line that has no reason, no number, or comes twice.
    """
    exclusions: dict[str, dict[int, str]] = {}
    for position, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=2)
        if len(words) < 3 or not re.fullmatch(r"\d+|\*", words[1]):
            raise ValueError(f"line {position}: not `case number  reason`: {line}")
        case, number = words[0], WHOLE_CASE if words[1] == "*" else int(words[1])
        if number in exclusions.setdefault(case, {}):
            raise ValueError(f"line {position}: a second exclusion of {case} {words[1]}")
        exclusions[case][number] = words[2]
    return exclusions


def judge(case: str, checks: Iterable[Check], exclusions: Exclusions) -> list[Finding]:
    """One finding for each check, and one for each exclusion of this case that did not hold."""
    known = exclusions.get(case, {})
    findings = []
    seen = set()
    whole_case_held = False
    for number, result, detail in checks:
        seen.add(number)
        if result is Result.FAILED:
            reason = known.get(number) or known.get(WHOLE_CASE)
            whole_case_held |= number not in known
            verdict = Verdict.EXCLUDED if reason else Verdict.FAILED
            findings.append(Finding(case, number, verdict, reason or detail))
        elif number in known and result is Result.PASSED:
            reason = f"excluded because: {known[number]}"
            findings.append(Finding(case, number, Verdict.UNEXPECTED_PASS, reason))
        else:
            findings.append(Finding(case, number, Verdict[result.name], detail))
    if WHOLE_CASE in known and not whole_case_held:
        reason = f"excluded because: {known[WHOLE_CASE]}"
        findings.append(Finding(case, 0, Verdict.UNEXPECTED_PASS, reason))
    for number in sorted(known.keys() - seen - {0, WHOLE_CASE}):
        findings.append(Finding(case, number, Verdict.STALE, "there is no such check"))
    if 0 in known and 0 not in seen:
        reason = f"excluded because: {known[0]}"
        findings.append(Finding(case, 0, Verdict.UNEXPECTED_PASS, reason))
    return findings


def stale_cases(ran: Iterable[str], exclusions: Exclusions) -> list[Finding]:
    """Exclusions of cases that a whole run did not have."""
    gone = sorted(exclusions.keys() - set(ran))
    return [Finding(case, 0, Verdict.STALE, "there is no such case") for case in gone]


def count(findings: Iterable[Finding]) -> Counter[Verdict]:
    """How many checks came to each verdict (findings about a case as such are no checks,
    except when they are surprises)."""
    return Counter(
        finding.verdict
        for finding in findings
        if finding.number > 0 or finding.verdict is not Verdict.PASSED
    )
