"""The config entries of onnxruntime's sessions that a form's graphs are opened with."""

from transform.forms import Form

# Without these onnxruntime expands 16-bit weights to float32 at load, and keeps a repacked copy of every matrix:
# two MolmoE blocks in 16 bits (1.9 GB) take 6.9 GB instead of 0.04 GB. Each matters, the last one for float16 alone.
SESSION_OPTIONS = {
    "session.disable_prepacking": "1",
    "optimization.disable_specified_optimizers": "ConstantFolding;FuseFp16InitializerToFp32NodeTransformer",
}
# The fused experts are arranged at load, once: that is folding, and no other weights of a float16 graph are folded.
FUSED_OPTIONS = {
    "session.disable_prepacking": "1",
    "optimization.disable_specified_optimizers": "FuseFp16InitializerToFp32NodeTransformer",
}
# Folding costs nothing there, for what a cast widens is small; onnxruntime 1.25 to 1.29 end the process at a cast of
# scales that is left to its later passes.
QUANTISED_OPTIONS: dict[str, str] = {}


def session_options(form: Form) -> dict[str, str]:
    """The session config entries for a form's graphs, the vision graph's excepted: its are always SESSION_OPTIONS.

    Quantised decoders are repacked at load, for which their scales must be float32 already: otherwise
    onnxruntime does both at every run, and a token takes 7 times longer.
    """
    if form.bits:
        return dict(QUANTISED_OPTIONS)
    return dict(FUSED_OPTIONS if form.fused else SESSION_OPTIONS)
