"""Whether a policy can act in an environment: what it commands, and what it reads of the robot.

Cameras are none of this: an environment is made with the pictures that a policy looks at, or refuses to be.
"""

from __future__ import annotations

from collections.abc import Mapping

from daptq.action_space import agree, described
from daptq.environments.contract import Environment
from daptq.errors import InvalidInputError
from daptq.observations import STATE
from daptq.policies.contract import Policy

__all__ = ["compatible", "require_compatible"]


def compatible(policy: Policy, environment: Environment) -> bool:
    """Whether the policy can act in the environment."""
    return _acts_as_commanded(policy, environment) and _reads_the_state(policy, environment)


def require_compatible(policies: Mapping[str, Policy], environment: Environment, name: str) -> None:
    """Refuses policies that cannot act in an environment, before any episode.

    Args:
        policies: The policies, by label.
        environment: The environment.
        name: What the environment is called.

    Raises:
        InvalidInputError: The actions of a policy are others than those of the environment, or it reads another state.
    """
    for label, policy in policies.items():
        if not _acts_as_commanded(policy, environment):
            raise InvalidInputError(
                f"actions of policy {label} must be those of environment {name}, "
                f"{described(environment.action_dimensions)}, got {described(policy.action_space)}. Choose a policy "
                "and an environment of one action space."
            )
        if not _reads_the_state(policy, environment):
            raise InvalidInputError(
                f"{STATE} of policy {label} must have the {environment.state_dim} numbers of environment {name}, got "
                f"{policy.state_dim}. Choose a policy that reads this state, or none."
            )


def _acts_as_commanded(policy: Policy, environment: Environment) -> bool:
    return agree(policy.action_space, environment.action_dimensions)


def _reads_the_state(policy: Policy, environment: Environment) -> bool:
    return not policy.state_dim or policy.state_dim == environment.state_dim
