"""`group`, `driven` and `conversation` lie beside the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # whatever the import mode
