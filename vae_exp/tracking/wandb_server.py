"""The decision whether a run talks to the W&B server, made before wandb.init, which would prompt, hang or raise."""

import base64
import functools
import logging
import netrc
import os
import ssl
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from vae_exp.errors import UserError
from vae_exp.tracking.wandb_options import short
from vae_exp.training.folder import OUTPUTS

log = logging.getLogger(__name__)
PROBE_SECONDS = 4
REFUSED_IN_IDS = ":;,#?/'"
Mode = Literal["online", "offline", "disabled"]


def api_key(mode: str, because: str = "wandb.mode=online", instead: str = "use wandb.mode=offline") -> str | None:
    """Return the W&B API key, an empty text for other credentials, or None if there are none.

    Raise UserError if wandb.mode=online has none; it says what to do instead of `wandb login`.
    """
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    key = settings.api_key or _key_in_netrc(settings.base_url) or ("" if settings.identity_token_file else None)
    if mode == "online" and key is None:
        raise UserError(f"{because}: no W&B API key is configured. `wandb login`, or {instead}.")
    return key


def choose_mode(wanted: str) -> Mode:
    """Return the mode for wandb.init: online, offline or disabled.

    auto is disabled if WANDB_DISABLED says so, else WANDB_MODE's value, else online if an API key is configured, else
    offline. A server that does not answer, or refuses the key, means offline, and wrong settings mean disabled. Raise
    UserError as api_key and check_environment do.
    """
    mode = from_environment() if wanted == "auto" else wanted
    if mode == "disabled":
        return "disabled"
    check_environment(wanted)
    _mend_environment()
    import wandb

    try:
        key = api_key(mode) if mode in ("auto", "online") else None
        server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    except (ValueError, wandb.Error) as error:  # such as WANDB_BASE_URL without http://
        log.warning("W&B: its settings are wrong, so the run goes on without it: %s", error)
        return "disabled"
    if key is not None:
        trouble = _ask(server, key) if key else None
        if not trouble:
            return "online"
        log.warning("W&B: %s %s; the run goes on offline.", server, trouble)
    # Said to the whole process: else W&B's service talks to its server even for an offline run, and the
    # program's end waits for an answer.
    wandb.setup(wandb.Settings(silent=True, mode="offline"))
    return "offline"


def from_environment() -> str:
    """Return what wandb.mode=auto means, by W&B's own variables."""
    is_disabled = os.environ.get("WANDB_DISABLED", "").strip().lower() in ("true", "1", "yes", "y", "on", "t")
    return "disabled" if is_disabled else os.environ.get("WANDB_MODE", "auto")


def check_environment(wanted: str, several_runs: bool = False) -> None:
    """Raise UserError if W&B would refuse WANDB_RUN_ID, or if it is set for several runs; wanted is wandb.mode."""
    run_id = os.environ.get("WANDB_RUN_ID", "")
    if "disabled" in (wanted, from_environment() if wanted == "auto" else wanted):
        return
    if run_id != run_id.strip() or any(letter in REFUSED_IN_IDS or not letter.isprintable() for letter in run_id):
        raise UserError(
            f"WANDB_RUN_ID={run_id}: W&B takes no id with spaces around it or any of {' '.join(REFUSED_IN_IDS)} in it."
        )
    if run_id and several_runs:
        raise UserError(f"WANDB_RUN_ID={run_id}: is of one run, and each job of a sweep is a run of its own. Unset it.")


def _mend_environment() -> None:
    """Correct W&B's variables, which it reads itself: for a tag that is too long or an empty id it refuses them all."""
    if os.environ.get("WANDB_RUN_ID") == "":
        del os.environ["WANDB_RUN_ID"]
    if tags := os.environ.get("WANDB_TAGS"):
        os.environ["WANDB_TAGS"] = ",".join(short([tag for tag in tags.split(",") if tag.strip()]))
    if os.environ.get("WANDB_TAGS") == "":
        del os.environ["WANDB_TAGS"]


def _key_in_netrc(server: str) -> str | None:
    """Return the key that `wandb login` wrote, found without the network that wandb.login waits for."""
    try:
        entry = netrc.netrc(os.environ.get("NETRC")).hosts.get(urlparse(server).hostname or "")
    except (OSError, netrc.NetrcParseError):
        return None
    return entry[2] if entry else None


@functools.lru_cache  # a server that is away is waited for once, not once per job of a sweep
def _ask(server: str, key: str) -> str | None:
    """Ask the server who we are, as wandb would, and return what is wrong with it, or None."""
    login = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
    request = Request(f"{server.rstrip('/')}/graphql", b'{"query": "query { viewer { id } }"}', headers)
    try:
        urlopen(request, timeout=PROBE_SECONDS).close()
    except HTTPError as error:
        return f"refuses the API key ({error.code})" if error.code in (401, 403) else None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return (
            None if isinstance(reason, ssl.SSLError) else f"does not answer ({reason})"
        )  # wandb has its own certificates
    return None


def trouble() -> str | None:
    """Return what is wrong with the server just now, or None."""
    import wandb

    server = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    found = _ask.__wrapped__(server, api_key("auto") or "")
    return f"{server} {found}" if found else None


def download(artifact: str) -> Path:
    """Download a W&B artifact such as ENTITY/PROJECT/NAME:best into outputs/wandb/artifacts, and return its folder.

    Raise UserError if there is no key, no such artifact, or no network.
    """
    api_key("online", f"checkpoint={artifact} is an artifact of W&B's", "give the path of a file or of a run's folder")
    import wandb

    folder = OUTPUTS / "wandb" / "artifacts" / artifact.replace("/", "_").replace(":", "_")
    try:
        return Path(wandb.Api(timeout=15).artifact(artifact).download(str(folder)))
    except Exception as error:  # whatever W&B raises: no such artifact, no right to it, no network
        raise UserError(f"checkpoint={artifact}: W&B cannot give it ({error}).") from error
