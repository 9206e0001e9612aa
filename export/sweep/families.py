"""The graphs of all settings over one set of weights: DIR/family-FORM-DTYPE, made once and kept while it is whole."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.family.family import MemberError, export_family, member_name
from export.files.check import check_files
from export.files.integrity import sha256_file
from export.files.verification import SKIPPED
from export.run.family_file import read_family
from export.sweep.settings import Planned
from importance.atomic import write_atomically
from transform.errors import KnobcastError, VerificationError
from transform.knobs import Knobs
from transform.ownership import visible_files
from transform.plan import make_plan
from transform.progress import Say
from transform.read import read_checkpoint
from transform.strict_json import read_json


@dataclass(frozen=True)
class Families:
    """Where they lie, and how they are made. trusted: those that are there are known to be of this model; `warn`: told
    why one of them is written again."""

    directory: Path
    verify: bool
    trusted: bool
    warn: Say

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
                self.warn(f"{out} is written again: {error}")
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
                if not self.verify:
                    write_atomically(self._unproven(out), json.dumps(_sums(out), indent=1) + "\n", force=True)
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
        elif (sums := _sums(out)) != (known := read_json(self._unproven(out))):
            changed = sorted(name for name in sums | known if sums.get(name) != known.get(name))
            raise VerificationError(f"its files must be as they were written, {changed[0]} is changed or gone.")
        read_checkpoint(out)

    def _unproven(self, family: Path) -> Path:
        """What a family's files were, where its own record doesn't say: they weren't verified."""
        return self.directory / f"{family.name}.json"


def _sums(family: Path) -> dict[str, str | int]:
    """The digest of every file, of weights only the size."""
    files = [family / name for name in visible_files(family)]
    return {file.name: file.stat().st_size if file.suffix == ".safetensors" else sha256_file(file) for file in files}


def graph_of(setting: Planned) -> str:
    """The file of a setting's decoder in its family."""
    return f"text-{member_name(setting.plan.target)}.onnx"
