"""Sending a saved view and a report to W&B: what must be there first, and what a second call finds again."""

from typing import Any

from vae_exp.errors import UserError
from vae_exp.tracking import wandb_server
from vae_exp.tracking.wandb_logged import Logged
from vae_exp.tracking.wandb_options import first_line

SECONDS = 15  # for an answer of W&B's server
MISSING = "--wandb needs wandb-workspaces, which is not installed: pip install 'vae_exp[workspaces]'"


def require_library() -> None:
    """Raise UserError if wandb-workspaces is not installed."""
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError as error:
        raise UserError(f"{MISSING} ({error})") from error


def require_account() -> None:
    """Raise UserError if no API key is configured, or if the server does not answer or refuses it."""
    import wandb

    # Asked once more and no oftener: a server that fails would otherwise be waited for again by every question.
    wandb.setup(wandb.Settings(silent=True, x_graphql_retry_max=1))
    wandb_server.api_key("online", "--wandb", "print what would be sent with --dry-run")
    if trouble := wandb_server.trouble():
        raise UserError(f"--wandb: {trouble}. Nothing was sent.")


def missing_runs(entity: str, project: str, logged: Logged) -> int:
    """Return how many of the runs the project lacks. Raise UserError if there is no such project, or W&B refuses."""
    import wandb

    try:
        runs = wandb.Api(timeout=SECONDS).runs(f"{entity}/{project}", {"name": {"$in": logged.ids}})
        found = {run.id for run in runs}
    except ValueError as error:  # of the library, where the server knows no such project
        raise UserError(
            f"--wandb {entity}/{project}: W&B has no such project, or shows it to others than you. "
            "A project comes to be with its first run: wandb sync, or wandb.mode=online."
        ) from error
    except Exception as error:
        raise _refused(entity, project, error) from error
    return len(set(logged.ids) - found)


def save_view(view: Any) -> tuple[str, bool]:
    """Make or update the saved view.

    Return its address, and whether it was there before. Raise UserError if W&B refuses, or if it cannot be read.
    """
    from pydantic import ValidationError
    from wandb_workspaces.workspaces import Workspace
    from wandb_workspaces.workspaces.errors import SpecVersionError

    try:
        url = view.url
        try:
            before = Workspace.from_url(url)
        except (ValidationError, SpecVersionError) as error:
            raise UserError(
                f"{url}: this view is there, and wandb-workspaces cannot read it ({first_line(error)}). "
                "Upgrade wandb-workspaces, or delete the view."
            ) from error
        except ValueError:  # of the library, where the project has no view of this name
            before = None
        if before is not None:
            view._internal_id = before._internal_id
            ours = {section.name for section in view.sections} | set(_sections())
            view.sections = [*view.sections, *(each for each in before.sections if each.name not in ours)]
        view.save()
    except UserError:
        raise
    except Exception as error:
        raise _refused(view.entity, view.project, error) from error
    return view.url, before is not None


def save_report(report: Any) -> tuple[str, bool]:
    """Make the report, or update the project's report of the same title.

    Return its address, and whether it was there before. Raise UserError if W&B refuses.
    """
    import wandb

    try:
        of_project = wandb.Api(timeout=SECONDS).reports(f"{report.entity}/{report.project}")
        before = next((each for each in of_project if each.display_name == report.title), None)
        if before is not None:
            report.id = before.id
        report.save()
    except Exception as error:
        raise _refused(report.entity, report.project, error) from error
    return report.url, before is not None


def _sections() -> dict[str, Any]:
    from vae_exp.tracking.wandb_view import SECTIONS

    return SECTIONS


def _refused(entity: str, project: str, error: Exception) -> UserError:
    return UserError(f"--wandb {entity}/{project}: W&B did not take it ({' '.join(str(error).split())}).")
