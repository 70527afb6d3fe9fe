"""`vae-train --help`, with the user's own options that --config-dir names."""

import re
from pathlib import Path
from string import Template

from omegaconf import OmegaConf

from vae_exp.config import check
from vae_exp.config.check import CONF_DIR, path_of, quoted
from vae_exp.errors import UserError


def with_own_options(arguments: list[str]) -> list[str]:
    """Return the arguments with --config-dir FOLDER, which holds the user's own options, turned into a setting.

    The jobs of a sweep keep settings, but not flags.
    """
    found = [i for i, argument in enumerate(arguments) if argument.partition("=")[0] in ("--config-dir", "-cd")]
    if not found:
        return arguments
    flag, _, folder = arguments[found[0]].partition("=")
    after = found[0] + (1 if folder else 2)
    folder = folder or "".join(arguments[after - 1 : after])
    if not folder or not path_of(flag, folder).is_dir():
        raise UserError(f"{flag} {folder}: there is no such folder. It holds options of your own: objective/NAME.yaml")
    path = f"file://{Path(folder).resolve()}"
    path = path if re.fullmatch(r"[\w:/.-]+", path) else quoted(path)
    return [*arguments[: found[0]], *arguments[after:], f"hydra.searchpath=[{path}]"]


def print_help(arguments: list[str]) -> None:
    """Print the help of vae-train; Hydra would fill in the same text, but asks every plugin's groups, for seconds."""
    folders = [CONF_DIR]
    for word in arguments:
        if found := re.fullmatch(r"hydra\.searchpath=\['?file://(.*?)'?\]", word):  # of --config-dir
            folders.append(Path(found[1]))
    names: dict[str, list[str]] = {}
    for folder in folders:
        for group in check.groups(folder):
            names.setdefault(group, []).extend(check.options(group, folder))
    listed = "".join(f"{group}: {', '.join(options)}\n" for group, options in sorted(names.items()))
    template = OmegaConf.load(CONF_DIR / "hydra" / "help" / "vae_exp.yaml").template
    print(Template(template).substitute(APP_CONFIG_GROUPS=listed))
