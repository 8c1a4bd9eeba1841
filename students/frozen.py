"""What the records of students share: unknown fields are errors, nothing changes, and what was written before reads and hashes as it did."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Frozen(BaseModel):
    """A record that crosses a border: unknown fields are errors, and nothing changes after construction."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Growing(Frozen):
    """A record that gained fields after it was first in use.

    A later field is written only where it differs from its default. So what was asked for before it came has the same files and the same
    fingerprints, and nobody's student is trained anew over an option that is not used.
    """

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Names of these fields; each has a default."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        for name in self.LATER:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True, validated_data={}):
                written.pop(name, None)
        return written
