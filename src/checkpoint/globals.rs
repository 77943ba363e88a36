//! The names a checkpoint's pickle may use. Each is recognised as inert data; none is imported.

use safetensors::Dtype;

/// Names whose objects are read as opaque values.
const OPAQUE: &[&str] = &[
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.dict",
    "builtins.frozenset",
    "builtins.int",
    "builtins.float",
    "builtins.list",
    "builtins.object",
    "builtins.set",
    "builtins.slice",
    "builtins.str",
    "builtins.tuple",
    "__builtin__.bytearray",
    "__builtin__.dict",
    "__builtin__.frozenset",
    "__builtin__.long",
    "__builtin__.object",
    "__builtin__.set",
    "collections.Counter",
    "collections.OrderedDict",
    "collections.defaultdict",
    "collections.deque",
    "copyreg._reconstructor",
    "copy_reg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.serialization._get_layout",
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
];

/// Whether `name` may appear in a checkpoint.
pub(super) fn is_known(name: &str) -> bool {
    OPAQUE.contains(&name)
        || storage(name).is_some()
        || dtype(name).is_some()
        // numpy's scalar types (`numpy.float64`, `numpy.dtypes.Float64DType`) are names of data, not of behaviour.
        || name.strip_prefix("numpy.dtypes.").is_some_and(|rest| rest.ends_with("DType"))
        || name.strip_prefix("numpy.").is_some_and(is_numpy_scalar)
}

fn is_numpy_scalar(name: &str) -> bool {
    let stem = name.trim_end_matches('_').trim_end_matches(|c: char| c.is_ascii_digit());
    matches!(stem, "float" | "int" | "uint" | "bool" | "complex" | "str" | "bytes" | "longlong" | "intc")
}

/// Element type of a typed storage class, CPU or CUDA; `None` inside for types this tool has no use for.
pub(super) fn storage(name: &str) -> Option<Option<Dtype>> {
    let class = name.strip_prefix("torch.cuda.").or_else(|| name.strip_prefix("torch."))?;
    Some(Some(match class {
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        "ComplexFloatStorage" => Dtype::C64,
        "ComplexDoubleStorage" | "QInt8Storage" | "QUInt8Storage" | "QInt32Storage" => return Some(None),
        _ => return None,
    }))
}

/// Whether a storage class is untyped: its size is in bytes and the tensor names the type.
pub(super) fn is_untyped(name: &str) -> bool {
    matches!(name, "torch.storage.UntypedStorage" | "torch.UntypedStorage")
}

/// Element type of a `torch.dtype`; `None` inside for types this tool has no use for.
pub(super) fn dtype(name: &str) -> Option<Option<Dtype>> {
    Some(Some(match name.strip_prefix("torch.")? {
        "float32" | "float" => Dtype::F32,
        "float64" | "double" => Dtype::F64,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::BF16,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint8" => Dtype::U8,
        "uint16" => Dtype::U16,
        "uint32" => Dtype::U32,
        "uint64" => Dtype::U64,
        "bool" => Dtype::BOOL,
        "float8_e4m3fn" => Dtype::F8_E4M3,
        "float8_e5m2" => Dtype::F8_E5M2,
        "complex64" => Dtype::C64,
        "complex128" | "complex32" | "qint8" | "quint8" | "qint32" => return Some(None),
        _ => return None,
    }))
}
