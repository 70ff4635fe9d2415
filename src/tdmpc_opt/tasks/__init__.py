"""The 30 tasks of MT30, users' own Gymnasium environments, and the choice among them."""

from typing import TYPE_CHECKING

from tdmpc_opt.errors import InputError, UnknownTaskError
from tdmpc_opt.schema import MT30, Task, TaskTable

if TYPE_CHECKING:
    from tdmpc_opt.contract import Contracts


def choose_tasks(text: str) -> TaskTable:
    """Return the tasks in the order of MT30, a user's own after them.

    Args:
        text: `mt30`, or names joined by commas: of MT30, or `MODULE:ID` of environments that a
            module of the user's registers with Gymnasium.

    Raises:
        UnknownTaskError: A name that is neither, or an empty list.
        InputError: An environment that no agent here can act in, or two of one name.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    ours = [name for name in names if name in MT30.names or name == "mt30"]
    own = _own_tasks([name for name in names if name not in ours])
    if not own:
        return MT30.select(text)
    found = MT30.select(",".join(ours)).tasks if ours else ()
    return TaskTable((*found, *own))


def with_own_contracts(
    contracts: "Contracts", tasks: TaskTable, text: str | None
) -> "Contracts":
    """Add what the environments that a command line names state of their numbers.

    Args:
        contracts: What is known of the numbers of an agent's tasks.
        tasks: Its tasks.
        text: What `choose_tasks` takes, or None. The environment that a file alone names is not
            imported.

    Raises:
        UnknownTaskError, InputError: As `choose_tasks`.
    """
    own = [task for task in choose_tasks(text).tasks if task.env] if text else []
    if not own:
        return contracts
    from tdmpc_opt.tasks.own import own_contract

    return {
        **contracts,
        **{task.name: own_contract(task) for task in own if task in tasks.tasks},
    }


def _own_tasks(texts: list[str]) -> tuple[Task, ...]:
    if not texts:
        return ()
    from tdmpc_opt.tasks.own import own_task  # Gymnasium loads for those who need it

    own: dict[str, Task] = {}
    for text in dict.fromkeys(texts):
        _refuse_misspelt(text)
        task = own_task(text)
        if task.name in own:
            raise InputError(
                f"{text} and {own[task.name].env} are both called {task.name}; register one "
                "under another id"
            )
        own[task.name] = task
    return tuple(own.values())


def _refuse_misspelt(text: str) -> None:
    """Refuse a misspelt name of MT30 with its near matches."""
    import gymnasium

    if ":" not in text and text not in gymnasium.registry:
        try:
            MT30.index(text)
        except UnknownTaskError as error:
            raise UnknownTaskError(
                f"{error} (an environment of your own is named MODULE:ID)"
            ) from None
