"""What the help says of the environment."""

from rich.markup import escape

from evervec.variables import variables


def environment_help() -> str:
    """The variables as the help's last part, in Rich's markup."""
    lines = ["[bold]Environment[/bold]"]
    for variable in variables():
        notes = [f"default: {variable.default}"] if variable.default else []
        notes += [f"also: {alias}" for alias in variable.aliases]
        ending = f" [dim]({escape('; '.join(notes))})[/dim]" if notes else ""
        lines.append(f"[cyan]{variable.name}[/cyan]  {escape(variable.description)}{ending}")
    return "\n".join(lines)
