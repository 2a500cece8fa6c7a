"""Validates a crate without a network, by the interpreter of an environment with roc-validator and rocrate.

Usage: python offline_crate.py FOLDER PROFILE. The package rocrate brings the context of RO-Crate 1.3 (CC0),
which goes into the cache of the validator. Prints the issues, and ends with 1 if there are any.
"""

import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import requests
import rocrate
import urllib3
from rocrate_validator import models, services
from rocrate_validator.utils.http import HttpRequester

CONTEXT = "https://w3id.org/ro/crate/1.3/context"


def seed(cache: str) -> None:
    """Put the context into the cache."""
    requester = HttpRequester(cache_path=cache, offline=True)
    data = Path(rocrate.__file__).with_name("data").joinpath("ro-crate.jsonld").read_bytes()
    headers = {"Content-Type": "application/ld+json", "Content-Length": str(len(data))}
    for accept in ("application/ld+json, application/json", "*/*"):
        request = requests.Request("GET", CONTEXT, headers={"Accept": accept}).prepare()
        raw = urllib3.HTTPResponse(
            BytesIO(data), headers, 200, preload_content=False, request_method="GET", request_url=CONTEXT
        )
        response = requests.adapters.HTTPAdapter().build_response(request, raw)
        requester.session.cache.save_response(response)


def main() -> int:
    """Validate the crate, and print what is wrong with it."""
    folder, profile = sys.argv[1:3]
    severity = models.Severity.REQUIRED
    with tempfile.TemporaryDirectory() as place:
        cache = str(Path(place, "cache"))
        seed(cache)
        result = services.validate(
            services.ValidationSettings(
                rocrate_uri=folder,
                profile_identifier=profile,
                requirement_severity=severity,
                cache_path=cache,
                offline=True,
                # Profiles of runs inherit from RO-Crate 1.1, whose context has other names of types than 1.3.
                disable_inherited_profiles_issue_reporting=not profile.startswith("ro-crate"),
            )
        )
        issues = [f"{each.check.identifier}: {each.message}" for each in result.get_issues()]
    print(json.dumps(issues, indent=1))
    return 1 if issues else 0


if __name__ == "__main__":
    sys.exit(main())
