"""What every test shares: how hypothesis searches."""

import os

import hypothesis

# No deadline: how long one example takes says more about a busy machine than about the code.
hypothesis.settings.register_profile("person", deadline=None)
# In CI the same examples every time: a red run must be about the change that is being tested.
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "person")
