"""A package that isn't installed → one sentence with the extra that has it. `[run]`, the small one, has no torch."""

EXTRAS = {
    "onnxruntime": "run",
    "mlflow": "mlflow",
    **dict.fromkeys(("model_signing", "OpenSSL"), "sign"),
    **dict.fromkeys(("torch", "transformers", "safetensors", "huggingface_hub", "onnx", "ml_dtypes"), "full"),
    **dict.fromkeys(("fsspec", "s3fs"), "s3"),
}  # the name that is imported -> an extra of pyproject.toml
_INSTALL = {
    "run": "Run pip install -e '.[run]'.",
    "mlflow": "Run pip install -e '.[mlflow]'.",
    "s3": "Run pip install -e '.[s3]'.",
    "sign": "Run pip install -e '.[sign]'.",
    # onnxruntime and onnxruntime-gpu own the same files
    "full": "Run make setup in the checkout, or pip install -e '.[full]' in an environment of its own.",
}


def missing(error: ModuleNotFoundError) -> str | None:
    """What to tell a user; None where the module belongs to no extra, so that its absence is a mistake of ours."""
    package = (error.name or "").partition(".")[0]
    return lacking(package) if package in EXTRAS else None


def lacking(package: str) -> str:
    """What an absent package of EXTRAS means, and the way out."""
    extra = EXTRAS[package]
    return f"this needs the package {package} of the extra [{extra}], which isn't installed here. {_INSTALL[extra]}"
