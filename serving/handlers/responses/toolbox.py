"""A request's tools under the flat names that the model sees, and the way back to the names that the client knows."""

from collections.abc import Iterable, Sequence

from ...errors import ApiError
from ...protocol.responses.tools import (
    AllowedTools,
    CustomTool,
    FunctionTool,
    GrammarFormat,
    NamedTool,
    NamespaceTool,
    OtherTool,
    ToolChoiceSpec,
    ToolSpec,
)
from ...text.tools import CustomFormat, Tool, ToolChoice


class Toolbox:
    """The tools that are offered to the model.

    Args:
        specs: the request's tools, those in its input included.
        choice: the request's tool_choice.

    Attributes:
        tools: with flat names; a tool of a namespace is `namespace__name`.
        choice: with flat names.
        not_offered: types of tools that only OpenAI's servers run, such as web_search.

    Raises:
        ApiError: a name twice, or a choice of what is not there.
    """

    def __init__(self, specs: Sequence[ToolSpec], choice: ToolChoiceSpec) -> None:
        self.tools: list[Tool] = []
        self.not_offered: list[str] = []
        self._names: dict[str, tuple[str, str | None]] = {}
        for index, spec in enumerate(specs):
            param = f"tools.{index}"
            match spec:
                case NamespaceTool(tools=members):
                    for number, member in enumerate(members):
                        self._add(member, spec, f"{param}.tools.{number}")
                case FunctionTool() | CustomTool():
                    self._add(spec, None, param)
                case OtherTool(type=kind) if kind not in self.not_offered:
                    self.not_offered.append(kind)
        self.choice = self._resolve(choice)

    def split(self, name: str) -> tuple[str, str | None]:
        """A flat name's own name and namespace, as the client knows them."""
        return self._names[name]

    def _add(self, spec: FunctionTool | CustomTool, namespace: NamespaceTool | None, param: str) -> None:
        name = flat_name(spec.name, namespace.name if namespace else None)
        if name in self._names:
            raise ApiError(
                f"Invalid 'tools': two tools have the name '{name}'. Rename one.", code="invalid_value", param="tools"
            )
        self._names[name] = (spec.name, namespace.name if namespace else None)
        description = "\n\n".join(filter(None, (namespace.description if namespace else "", spec.description)))
        if isinstance(spec, FunctionTool):
            self.tools.append(
                Tool(
                    name=name,
                    description=description,
                    parameters=spec.parameters,
                    strict=spec.strict is True,
                    param=f"{param}.parameters",
                )
            )
            return
        grammar = spec.format if isinstance(spec.format, GrammarFormat) else None
        self.tools.append(
            Tool(
                name=name,
                description=description,
                custom=True,
                format=CustomFormat(grammar.syntax, grammar.definition) if grammar else None,
                param=f"{param}.format",
            )
        )

    def _resolve(self, choice: ToolChoiceSpec) -> ToolChoice:
        match choice:
            case NamedTool():
                return ToolChoice(mode="required", allowed=tuple(self._find(choice)))
            case AllowedTools():
                names = dict.fromkeys(name for named in choice.tools for name in self._find(named))
                return ToolChoice(mode=choice.mode, allowed=tuple(names))
            case _:
                if choice == "required" and not self.tools:
                    raise ApiError(
                        "Invalid 'tool_choice': 'required' needs a tool that the model can call, and there is none. "
                        "Send function, custom or namespace tools.",
                        code="invalid_value",
                        param="tool_choice",
                    )
                return ToolChoice(mode=choice)

    def _find(self, named: NamedTool) -> Iterable[str]:
        """The flat names that a choice means."""
        if named.type == "namespace":
            found = [flat for flat, (_, namespace) in self._names.items() if namespace == named.name]
        else:
            wanted = flat_name(named.name, named.namespace)
            custom = named.type == "custom"
            found = [tool.name for tool in self.tools if tool.name == wanted and tool.custom == custom]
        if not found:
            raise ApiError(
                f"Invalid 'tool_choice': there is no {named.type} tool '{named.name}' among the tools. Send one of: "
                f"{', '.join(self._names) or 'none are given'}.",
                code="invalid_value",
                param="tool_choice",
            )
        return found


def flat_name(name: str, namespace: str | None) -> str:
    """The name that the model sees."""
    return f"{namespace}__{name}" if namespace else name
