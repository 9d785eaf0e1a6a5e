"""Whether clients of one OpenAPI document can live with another. Knows documents; nothing of this service.

What a request may hold must not become less, and what an answer holds must not become other or less.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

_Json: TypeAlias = Mapping[str, Any]

_LOWER_BOUNDS: Final = ("minLength", "minItems", "minimum", "exclusiveMinimum")
_UPPER_BOUNDS: Final = ("maxLength", "maxItems", "maximum", "exclusiveMaximum")


def breaking_changes(old: _Json, new: _Json) -> list[str]:
    """Return what of `new` breaks a client that was written for `old`, a sentence each."""
    return list(_Comparison(old, new).paths())


def may_break(old: str, new: str) -> bool:
    """Return whether the version says that clients may break: another major one or, while that is 0, minor one."""
    before, after = (version.split(".") for version in (old, new))
    leading = 1 if before[0] != "0" else 2
    return before[:leading] != after[:leading]


@dataclass(frozen=True, slots=True)
class _Comparison:
    old: _Json
    new: _Json

    def paths(self) -> Iterator[str]:
        for path, item in self.old["paths"].items():
            for method, operation in item.items():
                where = f"{method.upper()} {path}"
                if (found := self.new["paths"].get(path, {}).get(method)) is None:
                    yield f"{where} is gone"
                else:
                    yield from self._operation(where, operation, found)

    def _operation(self, where: str, old: _Json, new: _Json) -> Iterator[str]:
        known = {(each["in"], each["name"]): each for each in old.get("parameters", ())}
        for parameter in new.get("parameters", ()):
            before = known.get((parameter["in"], parameter["name"]), {})
            if parameter.get("required") and not before.get("required"):
                yield f"{where} needs the {parameter['in']} parameter {parameter['name']}"
            elif before:
                place = f"{where}, {parameter['name']}"
                yield from self._schema(place, before["schema"], parameter["schema"], sent=True, seen=frozenset())
        if "requestBody" in old:
            contents = old["requestBody"]["content"], new.get("requestBody", {}).get("content", {})
            yield from self._contents(f"{where}, request", *contents, sent=True)
        for status, response in old["responses"].items():
            if (found := new["responses"].get(status)) is None:
                yield f"{where} no longer tells of {status}"
            else:
                contents = response.get("content", {}), found.get("content", {})
                yield from self._contents(f"{where}, {status}", *contents, sent=False)

    def _contents(self, where: str, old: _Json, new: _Json, *, sent: bool) -> Iterator[str]:
        for media_type, content in old.items():
            if media_type not in new:
                yield f"{where} is no longer {media_type}"
            else:
                schemas = content.get("schema", {}), new[media_type].get("schema", {})
                yield from self._schema(where, *schemas, sent=sent, seen=frozenset())

    def _schema(self, where: str, old: _Json, new: _Json, *, sent: bool, seen: frozenset[str]) -> Iterator[str]:
        """Compare what may be sent, or may come back."""
        pair = f"{old.get('$ref')} {new.get('$ref')}"
        if "$ref" in old and pair in seen:
            return
        seen |= {pair}
        before, after = list(_variants(self.old, old)), list(_variants(self.new, new))
        # Each variant that a client may send must still be taken; each that may come back must be one it knows.
        for variant in before if sent else after:
            others = after if sent else before
            found = [
                list(self._variant(where, *((variant, other) if sent else (other, variant)), sent=sent, seen=seen))
                for other in others
                if other.get("type") == variant.get("type") or not other
            ]
            if not found:
                yield f"{where}: {variant.get('type', 'anything')} is {'no longer taken' if sent else 'new'}"
            else:
                yield from min(found, key=len)

    def _variant(self, where: str, old: _Json, new: _Json, *, sent: bool, seen: frozenset[str]) -> Iterator[str]:
        yield from _values(where, old, new, sent=sent)
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, schema in before.items():
            if name not in after:
                yield f"{where}: {name} is gone"
            else:
                yield from self._schema(f"{where}.{name}", schema, after[name], sent=sent, seen=seen)
        needed = set(new.get("required", ())), set(old.get("required", ()))
        for name in sorted(needed[0] - needed[1] if sent else (needed[1] - needed[0]) & after.keys()):
            yield f"{where}: {name} {'is needed' if sent else 'may be missing'}"
        if sent and new.get("additionalProperties") is False is not old.get("additionalProperties"):
            yield f"{where}: unknown fields are refused"
        for part in ("items", "additionalProperties"):
            if isinstance(old.get(part), dict) and isinstance(new.get(part), dict):
                yield from self._schema(f"{where}[]", old[part], new[part], sent=sent, seen=seen)


def _variants(document: _Json, schema: _Json) -> Iterator[_Json]:
    """Yield the alternatives of a schema, references followed."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from _variants(document, document["components"]["schemas"][name])
    elif alternatives := schema.get("anyOf") or schema.get("oneOf"):
        for alternative in alternatives:
            yield from _variants(document, alternative)
    else:
        yield schema


def _values(where: str, old: _Json, new: _Json, *, sent: bool) -> Iterator[str]:
    """Compare which values a type has: fewer may not be taken, others not come back."""
    before, after = ({schema["const"]} if "const" in schema else set(schema.get("enum", ())) for schema in (old, new))
    wider, narrower = (after, before) if sent else (before, after)
    if wider and not (narrower and narrower <= wider):
        values = sorted(map(str, narrower - wider)) or ["others"]
        yield f"{where}: {', '.join(values)} {'is no longer taken' if sent else 'is new'}"
    if sent:
        for bound in (*_LOWER_BOUNDS, *_UPPER_BOUNDS):
            sign = 1 if bound in _LOWER_BOUNDS else -1
            if bound in new and (bound not in old or sign * new[bound] > sign * old[bound]):
                yield f"{where}: {bound} is {new[bound]}"
