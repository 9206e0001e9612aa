"""The graphs of all settings over one set of weights: DIR/family-FORM-DTYPE, made once and kept while it is whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.family.family import MemberError, export_family, member_name
from export.files.check import check_files, check_members
from export.files.verification import SKIPPED
from export.run.family_file import read_family
from export.sweep.settings import Planned
from transform.errors import KnobcastError, VerificationError
from transform.knobs import Knobs
from transform.plan import make_plan
from transform.progress import Say


@dataclass(frozen=True)
class Families:
    """Where they lie, and how they are made. trusted: those that are there are known to be of this model."""

    directory: Path
    verify: bool
    trusted: bool

    def of(self, settings: Sequence[Planned], say: Say) -> tuple[Path, dict[str, str]]:
        """(the family of settings over the same weights, written where it isn't there whole; {decoder's file: why it
        is left out}); raises KnobcastError where there is none."""
        form, dtype = settings[0].weights
        out = self.directory / f"family-{form}-{dtype}"
        if out.exists() and self.trusted:
            try:
                self._check(out, settings)
                return out, {}
            except KnobcastError as error:
                say(f"{out.name} is written again: {error}")
        base = settings[0].plan
        knobs = Knobs(form=base.knobs.form, dtype=base.knobs.dtype)
        members = {}
        for plan in (each.plan for each in settings):
            own = replace(knobs, k=plan.knobs.k, keep=plan.keep_blocks)
            members[member_name(plan.target)] = make_plan(plan.source, own)
        plan, failed = make_plan(base.source, knobs), {}
        while True:
            try:
                export_family(plan, tuple(members.values()), out, verify=self.verify, force=out.exists(), say=say)
            except MemberError as error:  # it must not take the others along
                failed[f"text-{error.member}.onnx"] = str(error)
                del members[error.member]
                if not members:
                    raise
            else:
                return out, failed

    def _check(self, out: Path, settings: Sequence[Planned]) -> None:
        family = read_family(out)
        there = {member.name: member for member in family.members}
        for setting in settings:
            member = there.get(member_name(setting.plan.target))
            if member is None or (member.blocks_kept, member.top_k) != (setting.plan.keep_blocks, setting.top_k):
                raise VerificationError(f"its members must be the grid's, {member_name(setting.plan.target)} is not.")
            if self.verify and member.verification == SKIPPED:
                raise VerificationError(f"its members must be verified, {member.name} is not.")
        if self.verify:
            check_files(out)
        else:
            check_members(out, family)


def graph_of(setting: Planned) -> str:
    """The file of a setting's decoder in its family."""
    return f"text-{member_name(setting.plan.target)}.onnx"
