"""`aerodrome plan`: how many runtimes, how much memory and how many nodes a number of users needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from aerodrome._util.durations import parse_duration, parse_size
from aerodrome.cli.console import note, print_json, print_table
from aerodrome.cli.options import JsonOption
from aerodrome.model import Isolation
from aerodrome.operators.capacity import MEASURED, MEGABYTE, Demand, Machine, plan


def _share(text: str) -> float:
    """From "5%" or "0.05". Raises `ValueError`."""
    percent = text.endswith("%")
    share = float(text.removesuffix("%")) / (100 if percent else 1)
    if not 0 <= share <= 1:
        raise ValueError("it is not between 0 and 1")
    return share


def _parsed(option: str, text: str, parse: Callable[[str], float], like: str) -> float:
    try:
        return float(parse(text))
    except ValueError:
        raise typer.BadParameter(f"expected something like {like}, not {text!r}", param_hint=option) from None


def planning(
    users: Annotated[int, typer.Option(min=1, help="How many there are.")],
    active: Annotated[
        str, typer.Option(metavar="SHARE", help="How many of them use a session within half an hour.")
    ] = "10%",
    turns_per_minute: Annotated[
        float | None, typer.Option(min=0, help="Of all users together; by default one of each active user.")
    ] = None,
    turn_time: Annotated[
        str, typer.Option(metavar="DURATION", help="What a turn takes, most of it in the model.")
    ] = "20s",
    isolation: Annotated[Isolation, typer.Option(help="Whether users share runtimes.")] = Isolation.TENANT,
    tenants: Annotated[int, typer.Option(min=1, help="Among which the users are spread.")] = 1,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that an active user has loaded.")] = 1,
    max_sessions: Annotated[int, typer.Option(min=1, help="As `runtime.max_sessions`.")] = 50,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Of the machine of a node.")] = "16GB",
    cores: Annotated[float, typer.Option(min=0.1, help="Of the machine of a node.")] = 4.0,
    as_json: JsonOption = False,
) -> None:
    """Say how many runtimes, how much memory and how many nodes a number of users needs.

    It asks nobody and starts nothing: it multiplies what was measured that runtimes and sessions take
    (docs/capacity.md).
    """
    share = _parsed("--active", active, _share, '"5%" or 0.05')
    per_minute = users * share if turns_per_minute is None else turns_per_minute
    demand = Demand(
        users=users,
        active=share,
        per_minute=per_minute,
        isolated=isolation is Isolation.USER,
        turn_seconds=_parsed("--turn-time", turn_time, parse_duration, '"20s"'),
        sessions=sessions,
        tenants=tenants,
    )
    machine = Machine(
        memory=_parsed("--memory", memory, parse_size, '"16GB"') / MEGABYTE, cores=cores, max_sessions=max_sessions
    )
    least = MEASURED.memory(nodes=1, runtimes=1, loaded=1, running=1, asleep=0)
    if least > machine.memory * machine.used:
        raise typer.BadParameter(
            f"a node with one runtime takes {least:.0f} MB, and three quarters of the machine's are planned with",
            param_hint="--memory",
        )
    made = plan(demand, MEASURED, machine).describe()
    if as_json:
        print_json(made)
        return
    settings = made.pop("settings")
    print_table(("NEEDED", ""), [(name.replace("_", " "), value) for name, value in made.items()])
    print_table(("SETTING, EACH NODE", ""), settings.items())
    note("One of the nodes may fail; a quarter of each is left free. See docs/capacity.md.")
