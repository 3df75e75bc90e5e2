"""`kizu serve`, `kizu db` and `kizu models`. Heavy modules are imported inside the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kizu.errors import UserError

if TYPE_CHECKING:
    from kizu.service.registry.schemas import Certificate
    from kizu.service.registry.tables import Model
    from kizu.service.settings import Settings
    from kizu.service.storage.database import Database

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout, and nothing else.")]

console = Console()


def register(app: typer.Typer) -> None:
    """Add the service's commands to `kizu`."""
    app.command()(serve)
    db = typer.Typer(no_args_is_help=True, help="The service's database.")
    db.command("upgrade")(db_upgrade)
    app.add_typer(db, name="db")
    models = typer.Typer(no_args_is_help=True, help="The models that the service knows.")
    for name, command in (
        ("add", models_add),
        ("list", models_list),
        ("promote", models_promote),
        ("rollback", models_rollback),
        ("retire", models_retire),
    ):
        models.command(name)(command)
    app.add_typer(models, name="models")


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (KIZU_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one (KIZU_PORT).")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda (KIZU_DEVICE).")] = None,
) -> None:
    """Serve the API; brings the database up to date first."""
    given = {"host": host, "port": port, "device": device}
    settings = _settings(**{name: value for name, value in given.items() if value is not None})
    from kizu.service import server

    server.run(settings)


def db_upgrade() -> None:
    """Bring the database to this version's schema."""
    from kizu.service.storage import schema
    from kizu.service.storage.database import Database

    database = Database(_settings().resolved_database_url())
    changed = schema.upgrade(database)
    console.print(f"The database {'now has' if changed else 'already had'} schema {schema.head()}.")


def models_add(
    bundle: Annotated[Path, typer.Argument(help="The folder that `kizu train` wrote: RUN/bundle.")],
    promote: Annotated[bool, typer.Option("--promote", help="Make it the champion of its recipe.")] = False,
    as_json: Json = False,
) -> None:
    """Verify a bundle and add it to the registry. Adding the same one again changes nothing."""
    from kizu.service.registry import service

    settings = _settings()
    database = _database(settings)
    model, is_new = service.add(database, settings.bundle_dir(), bundle, settings.device)
    if promote:
        model = service.promote(database, model.id)
    _show(database, [model], as_json, "Added." if is_new else "It was there already.", single=True)


def models_list(
    recipe: Annotated[str | None, typer.Option(help="Only this recipe's.")] = None, as_json: Json = False
) -> None:
    """List the registered models."""
    from kizu.service.registry import repository

    database = _database(_settings())
    with database.reading() as session:
        models = repository.models(session, recipe)
    _show(database, list(models), as_json)


def models_promote(model_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Make a model the champion of its recipe; a running service follows within a second."""
    from kizu.service.registry import service

    database = _database(_settings())
    _show(database, [service.promote(database, model_id)], as_json, "Promoted.", single=True)


def models_rollback(recipe: str, as_json: Json = False) -> None:
    """Make a recipe's previous champion champion again."""
    from kizu.service.registry import service

    database = _database(_settings())
    _show(database, [service.rollback(database, recipe)], as_json, "Rolled back.", single=True)


def models_retire(model_id: Annotated[str, typer.Argument(metavar="ID")], as_json: Json = False) -> None:
    """Take a model out of use."""
    from kizu.service.registry import service

    database = _database(_settings())
    _show(database, [service.retire(database, model_id)], as_json, "Retired.", single=True)


def _settings(**given: str | int) -> Settings:
    from kizu.service.settings import Settings

    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"A setting is wrong: {error}", "Check the KIZU_* environment variables.") from error


def _database(settings: Settings) -> Database:
    from kizu.service.storage import schema
    from kizu.service.storage.database import Database

    database = Database(settings.resolved_database_url())
    schema.upgrade(database)
    return database


def certified(certificate: Certificate) -> str:
    """Return what a model is certified for, in a few words."""
    if certificate.certified_fnr is None:
        return "FNR unknown"
    text = f"FNR ≤ {certificate.certified_fnr:.3g} at {certificate.confidence:.0%} confidence"
    if certificate.groups_only_fnr is not None:
        text += f" for new parts (≤ {certificate.groups_only_fnr:.3g} for parts of the groups seen only)"
    if certificate.basis != "certified":
        missed = "certified" if certificate.basis == "above-target" else "certifiable"
        text += f"; target {certificate.target_fnr:.3g} not {missed}"
    elif not certificate.for_new_parts:
        text += " for parts of the groups seen only"
    return text


def _show(database: Database, models: list[Model], as_json: bool, message: str = "", *, single: bool = False) -> None:
    from kizu.service.registry import repository
    from kizu.service.registry.schemas import ModelView

    with database.reading() as session:
        champions = repository.champions(session)
    views = [ModelView.of(model, champions[model.recipe]) for model in models]
    if as_json:
        items = [view.model_dump(mode="json") for view in views]
        typer.echo(json.dumps(items[0] if single else {"items": items}, ensure_ascii=False))
        return
    table = Table(title=message or None, title_justify="left")
    for heading in ("id", "model", "status", "threshold", "certificate"):
        table.add_column(heading, no_wrap=heading in ("id", "model", "status"))
    for view in views:
        table.add_row(view.id, view.name, view.status, f"{view.threshold:.6g}", certified(view.certificate))
    console.print(table if models else "No model has been added yet: kizu models add BUNDLE.")
