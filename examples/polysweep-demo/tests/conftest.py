"""Have pytest show the values of failed assertions of the suite."""

import pytest

pytest.register_assert_rewrite("orchestrator.testing")
