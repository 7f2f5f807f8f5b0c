"""Validation of resources by a local Envoy, in programs and tests.

refused = await EnvoyValidator().check(store.view("ingress-1"))
"""

from xds.validation.envoy import EnvoyNotFoundError, EnvoyUnavailableError, EnvoyValidator, find_envoy

__all__ = ["EnvoyNotFoundError", "EnvoyUnavailableError", "EnvoyValidator", "find_envoy"]
