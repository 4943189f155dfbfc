"""Where settings come from, and the forms that are derived from their fields (config.py).

    load         default < TOML file < environment < flags, with the origin of each value
    add_flags    flags of argparse        environment   variables for another process
    effective    `chatd config`           docs_table    docs/operations.md

An operator needs from an error which of the four sources to look at. So `load` raises SettingError
with one line: the setting, its origin, what is wrong and what would be right. No message shows a
secret.
"""

from __future__ import annotations

import argparse
import codecs
import difflib
import os
import tomllib
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from chatd import kubernetes_env, setting_checks
from chatd.config import Settings, mask_password, one_line
from chatd.errors import SettingError

ENV_PREFIX = "CHATD_"
CONFIG_VARIABLE = "CHATD_CONFIG"  # names the TOML file if there is no --config (containers have no flags)
CONFIG_BYTES_MAX = 1 << 20


def load(
    argv_overrides: Mapping[str, object], config_file: Path | None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Settings from flags, environment (default: the process's) and TOML file. Raises SettingError.

    `argv_overrides` may be `vars()` of the whole namespace: names that are no settings are ignored.
    Without `config_file` the variable CHATD_CONFIG may name one. An empty variable counts as unset.
    """
    environ = os.environ if environ is None else environ
    if config_file is None and environ.get(CONFIG_VARIABLE):
        config_file = Path(environ[CONFIG_VARIABLE])
    values: dict[str, Any] = {} if config_file is None else _read_toml(config_file)
    origins = {name: f"{name} in {config_file}" for name in values}
    variables, passed_over = _read_environment(environ)
    for name, text in variables.items():
        values[name], origins[name] = text, ENV_PREFIX + name.upper()
    for name, given in argv_overrides.items():
        if name in Settings.model_fields and given is not None:
            values[name], origins[name] = given, _flag(name)
    try:
        settings = Settings(**values)
    except ValidationError as error:
        # `from None`, because the cause would show values, which may be secrets
        raise SettingError(_sentence(error, values, origins)) from None
    settings._origins.update(origins)
    settings._warnings.extend([kubernetes_env.warning(passed_over)] if passed_over else [])
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise OSError(None, f"it has more than {CONFIG_BYTES_MAX} bytes")
        if data.startswith(codecs.BOM_UTF8):
            raise OSError(
                None, "it begins with a byte order mark, which TOML does not know; save it as UTF-8 without one"
            )
        values = tomllib.loads(data.decode())
    except OSError as error:
        raise SettingError(one_line(f"--config: cannot read {path}: {error.strerror}; name another file")) from None
    except (ValueError, RecursionError) as error:  # only TOMLDecodeError shows no part of the file
        wrong = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8 text"
        raise SettingError(one_line(f"--config: {path} is not TOML: {wrong}; write lines like port = 8080")) from None
    for name in values:
        if name not in Settings.model_fields:
            raise SettingError(one_line(f"{name}: in {path} is not a setting; {_did_you_mean(name)}"))
    return values


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(settings by name, variables of Kubernetes that are ignored)."""
    values, passed_over = {}, []
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if kubernetes_env.is_injected(variable, environ[variable]):
            passed_over.append(variable)
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in Settings.model_fields or variable != variable.upper():
            remedy = _did_you_mean(name, lambda known: ENV_PREFIX + known.upper())
            raise SettingError(one_line(f"{variable}: in the environment is not a setting; {remedy}"))
        if environ[variable]:
            values[name] = environ[variable]
    return values, passed_over


def _did_you_mean(name: str, spell: Callable[[str], str] = str) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), Settings.model_fields, n=1)
    return f"did you mean {spell(near[0])}?" if near else "remove it (`chatd config` lists all settings)"


def _sentence(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """One line on the first wrong setting.

    Such as `port: 70000 from CHATD_PORT is wrong (...); give an integer from 0 to 65535`.
    """
    first = error.errors(include_url=False)[0]
    text = first["msg"].removeprefix("Value error, ")
    if first["loc"]:
        name = str(first["loc"][0])
        wrong = text if first["type"] == "value_error" else f"is wrong ({text[:1].lower()}{text[1:]})"
        remedy = f"give {allowed(name)}"
    else:  # of `_contradictions`: the sentence begins with the setting and ends with the remedy
        name, _, rest = text.partition(": ")
        wrong, _, remedy = rest.rpartition("; ")
    value = values.get(name, _text(Settings.model_fields[name].get_default(call_default_factory=True)))
    shown = "the value" if _is_secret(Settings.model_fields[name]) else _shorten(value)
    return one_line(f"{name}: {shown} from {origins.get(name, 'the default')} {wrong}; {remedy}")


def _shorten(value: object) -> str:
    text = value if isinstance(value, str) and value else _text(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- derived from the fields ---------------------------------------------------------------------

_UNITS = {  # by suffix; the first match counts, as frames_per_s is no time
    "_per_ms": "ms", "_per_s": "per second", "_per_hour": "per hour",
    "_ms": "ms", "_s": "s", "_days": "days", "_bytes_max": "bytes",
}  # fmt: skip


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unit(name: str) -> str:
    return next((unit for suffix, unit in _UNITS.items() if name.endswith(suffix)), "")


def _is_secret(field: FieldInfo) -> bool:
    return SecretStr in get_args(field.annotation)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def allowed(name: str) -> str:
    """What a valid value is, for errors and the docs."""
    field = Settings.model_fields[name]
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kind = get_args(kind)[0]
    if _choices(field):
        return "one of " + ", ".join(_choices(field))
    if kind is int:
        low, high = (next(getattr(rule, key) for rule in field.metadata if hasattr(rule, key)) for key in ("ge", "le"))
        return f"an integer from {low} to {high}"
    return (
        setting_checks.WORDS.get(name) or {bool: "true or false", Path: "a path", SecretStr: "a URL", str: "text"}[kind]
    )


def _default_text(field: FieldInfo) -> str:
    return "the user's data directory" if field.default_factory else _text(field.default) or "unset"


def _text(value: object) -> str:
    """A value as a flag or variable has it, with passwords masked."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case list():
            return ",".join(map(str, value))
        case SecretStr():
            return mask_password(value.get_secret_value())
        case _:
            return str(value)


def _groups() -> dict[str, list[tuple[str, FieldInfo]]]:
    groups: dict[str, list[tuple[str, FieldInfo]]] = {}
    for name, field in Settings.model_fields.items():
        assert isinstance(field.json_schema_extra, dict)
        groups.setdefault(str(field.json_schema_extra["group"]), []).append((name, field))
    return groups


def add_flags(parser: argparse.ArgumentParser, *, shown: bool = True) -> None:
    """Add one flag per setting, in groups; `shown`: list them in `--help`.

    A flag that is not given is absent from the namespace, by which `load` knows it.
    """
    for title, fields in _groups().items():
        group = parser.add_argument_group(title)
        for name, field in fields:
            default = f"{_default_text(field)} {_unit(name)}".strip()
            text = f"{field.description} (default: {default})".replace("%", "%%")
            options: dict[str, Any] = {
                "dest": name,
                "default": argparse.SUPPRESS,
                "help": text if shown else argparse.SUPPRESS,
            }
            if field.annotation is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["metavar"] = "|".join(_choices(field)) or name.rsplit("_", 1)[-1].upper()
            group.add_argument(_flag(name), **options)


def effective(settings: Settings) -> list[tuple[str, str, str]]:
    """(name, value without passwords, origin) of every setting, in the order of the fields."""
    origins = settings._origins
    return [(name, _text(getattr(settings, name)), origins.get(name, "default")) for name in Settings.model_fields]


def environment(settings: Settings) -> dict[str, str]:
    """The variables that pass these settings to another process, passwords included.

    Other users cannot read the environment of a process, unlike its flags.
    """
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        ENV_PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else _text(value)
        for name, value in values.items()
    }  # fmt: skip


def docs_table() -> str:
    """Markdown for docs/operations.md: a table per group, the same on every machine."""
    lines = []
    for title, fields in _groups().items():
        lines += [f"### {title}", "", "| setting | default | unit | allowed | meaning |", "|---|---|---|---|---|"]
        for name, field in fields:
            cells = (f"`{name}`", _default_text(field), _unit(name), allowed(name), str(field.description))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)
