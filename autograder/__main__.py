"""`python -m autograder COMMAND`: what `course.py` hands over to."""

import sys

# jsonschema looks for it, to judge web addresses, of which notebooks have none; only to import it
# takes a second.
sys.modules.setdefault("rfc3987_syntax", None)

from autograder.cli import main  # noqa: E402

sys.exit(main())
