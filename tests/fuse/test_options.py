"""Mount options: what mount(8) documents, and what is said about everything else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mountfs.errors import Fault, FsError
from mountfs.fuse import options
from mountfs.fuse.options import MountOptions, parse_options, parse_size
from mountfs.vfs.access_time import AccessTime

SECURE = options.MS_NOSUID | options.MS_NODEV | options.MS_NOEXEC


def refused(text: str) -> str:
    with pytest.raises(FsError) as caught:
        parse_options(text)
    assert caught.value.fault is Fault.INVALID
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",,",
        "defaults",
        "_netdev,nofail,noauto,auto,nouser",
        "x-systemd.automount,x-systemd.idle-timeout=1min,X-mount.mkdir",
        "comment=anything at all",
        'x-note="a,b",comment="ro,noexec"',
        r"x-note=a\,ro",
        "default_permissions,nonempty,fsname=data,subtype=other",
        "rw,suid,dev,exec,async",
    ],
)
def test_options_for_others_change_nothing(text: str) -> None:
    assert parse_options(text) == MountOptions()


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("ro", options.MS_RDONLY),
        ("nosuid,nodev,noexec", SECURE),
        ("sync,dirsync", options.MS_SYNCHRONOUS | options.MS_DIRSYNC),
        ("nosymfollow,silent", options.MS_NOSYMFOLLOW | options.MS_SILENT),
        ("lazytime,nodiratime", options.MS_LAZYTIME | options.MS_NODIRATIME),
        ("user", SECURE),
        ("user=ann,exec", SECURE & ~options.MS_NOEXEC),
        ("owner", options.MS_NOSUID | options.MS_NODEV),
    ],
)
def test_flags_of_mount(text: str, flags: int) -> None:
    assert parse_options(text).ms_flags == flags


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("ro,rw", 0),
        ("rw,ro", options.MS_RDONLY),
        ("ro,defaults", options.MS_RDONLY),  # as libmount: defaults overrides nothing
        ("nodev,dev,noexec,exec,nosuid,suid", 0),
        ("sync,async", 0),
        ("lazytime,nolazytime,nodiratime,diratime,silent,loud", 0),
    ],
)
def test_the_later_option_wins(text: str, flags: int) -> None:
    assert parse_options(text).ms_flags == flags


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", AccessTime.RELATIVE),
        ("atime", AccessTime.RELATIVE),
        ("norelatime", AccessTime.RELATIVE),  # as the kernel has it: relatime is the default
        ("noatime", AccessTime.NEVER),
        ("strictatime", AccessTime.STRICT),
        ("noatime,strictatime", AccessTime.STRICT),
        ("strictatime,noatime", AccessTime.NEVER),
        ("noatime,relatime", AccessTime.RELATIVE),
        ("noatime,atime", AccessTime.RELATIVE),
        ("strictatime,nostrictatime", AccessTime.RELATIVE),
    ],
)
def test_access_times(text: str, rule: AccessTime) -> None:
    assert parse_options(text).access_time is rule


def test_nodiratime_is_for_directories_only() -> None:
    parsed = parse_options("strictatime,nodiratime")
    assert parsed.access_time is AccessTime.STRICT
    assert parsed.directory_access_time is AccessTime.NEVER
    assert parse_options("strictatime").directory_access_time is AccessTime.STRICT


def test_properties_of_flags() -> None:
    assert parse_options("ro").read_only
    assert not parse_options("rw").read_only
    assert parse_options("dirsync").sync_directories
    assert parse_options("sync").sync_directories
    assert not parse_options("async").sync_directories


def test_allow_other_is_not_said_by_default() -> None:
    assert parse_options("").allow_other is None
    assert parse_options("allow_other").allow_other is True


def test_own_settings() -> None:
    parsed = parse_options(
        "binding=pyfuse3,debug,foreground,max_background=7,readahead=2MiB,attr_timeout=0.5,"
        "entry_timeout=60,poll_us=0,dirty=1GiB"
    )
    assert parsed == MountOptions(
        binding="pyfuse3",
        debug=True,
        foreground=True,
        max_background=7,
        readahead_bytes=2 << 20,
        attr_timeout_s=0.5,
        entry_timeout_s=60.0,
        poll_us=0,
        dirty_bytes=1 << 30,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *[("0", 0), ("4096", 4096), ("512B", 512)],
        *[("64k", 65_536), ("64K", 65_536), ("64KiB", 65_536), ("64 kib", 65_536)],
        *[("64kB", 64_000), ("4MiB", 4 << 20), ("4MB", 4_000_000)],
        *[("2G", 2 << 30), ("1TiB", 1 << 40)],
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "k", "-1", "1.5M", "4 Mi", "4X", "0x10", "1e3", "4MiBs", "٤"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        parse_size(text)


def test_an_unknown_option_is_named_with_the_nearest_known() -> None:
    assert refused("ro,noatme") == "unknown option 'noatme'; did you mean 'noatime'?"
    assert refused("max_backgroud=3") == (
        "unknown option 'max_backgroud'; did you mean 'max_background'?"
    )


def test_an_unknown_option_like_no_other_is_named() -> None:
    assert refused("zzzzz") == "unknown option 'zzzzz'"


@pytest.mark.parametrize("text", ["pasword=hunter2", "password=hunter2", "token=hunter2"])
def test_a_secret_is_refused_and_not_repeated(text: str) -> None:
    assert "hunter2" not in refused(text)


@pytest.mark.parametrize("name", ["allow_root", "auto_unmount", "remount", "password"])
def test_what_cannot_be_is_refused_with_the_reason(name: str) -> None:
    assert re.match(rf"option '{name}' is not supported: \w+", refused(name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dirty=huge", "option 'dirty' cannot be 'huge': expected a size such as 64k or 4MiB"),
        ("dirty=1k", "option 'dirty' cannot be '1k': expected 1MiB to 1024GiB"),
        ("readahead=2GiB", "option 'readahead' cannot be '2GiB': expected 0 to 1GiB"),
        (
            "max_background=0",
            "option 'max_background' cannot be '0': expected a whole number from 1 to 65535",
        ),
        ("poll_us=-1", "option 'poll_us' cannot be '-1': expected a whole number from 0 to 10000"),
        (
            "attr_timeout=soon",
            "option 'attr_timeout' cannot be 'soon': expected seconds from 0 to 1000000000",
        ),
        ("binding=rust", "option 'binding' cannot be 'rust': expected native or pyfuse3"),
        ("dirty", "option 'dirty' needs a value, as in dirty=64MiB"),
        ("binding=", "option 'binding' cannot be '': expected native or pyfuse3"),
        ("ro=1", "option 'ro' takes no value, but has '1'"),
        ("debug=yes", "option 'debug' takes no value, but has 'yes'"),
    ],
)
def test_a_bad_value_is_named_with_its_option(text: str, said: str) -> None:
    assert refused(text) == said


@pytest.mark.parametrize("value", ["inf", "nan", "1e9", "1000000001", "-1", "", ".", "1_0"])
def test_what_is_no_timeout(value: str) -> None:
    assert "'entry_timeout'" in refused(f"entry_timeout={value}")


@given(st.text())
def test_any_text_is_options_or_one_sentence(text: str) -> None:
    try:
        parse_options(text)
    except FsError as error:
        assert error.fault is Fault.INVALID
        assert str(error).isprintable()


@given(st.lists(st.sampled_from(["ro", "rw", "noexec", "exec", "noatime", "strictatime", "sync"])))
def test_repeating_all_options_changes_nothing(names: list[str]) -> None:
    text = ",".join(names)
    assert parse_options(f"{text},{text}") == parse_options(text)
