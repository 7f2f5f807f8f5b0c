"""Validation of resources before any client receives them.

    store = Store(validator=EnvoyValidator())

`EnvoyValidator` has a local Envoy load the resources. Implement `Validator` to apply other rules.
"""

from xds.validation.envoy import EnvoyNotFoundError, EnvoyValidator, IfUnavailable, find_envoy
from xds.validation.validator import Refusals, Validator, find_refused

__all__ = [
    "EnvoyNotFoundError",
    "EnvoyValidator",
    "IfUnavailable",
    "Refusals",
    "Validator",
    "find_envoy",
    "find_refused",
]
