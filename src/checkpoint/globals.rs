//! The names a checkpoint's pickle may use. Each is recognised as inert data; none is imported.

use safetensors::Dtype;

/// Names whose objects are read as opaque values.
const OPAQUE: &[&str] = &[
    "__builtin__.bool",
    "__builtin__.bytearray",
    "__builtin__.complex",
    "__builtin__.float",
    "__builtin__.int",
    "__builtin__.long",
    "__builtin__.object",
    "__builtin__.slice",
    "__builtin__.str",
    "__builtin__.unicode",
    "__builtin__.xrange",
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bool",
    "builtins.bytearray",
    "builtins.bytes",
    "builtins.complex",
    "builtins.float",
    "builtins.int",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "builtins.str",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "torch.Size",
    "torch.Tensor",
    "torch.contiguous_format",
    "torch.device",
    "torch.per_channel_affine",
    "torch.per_tensor_affine",
    "torch.serialization._get_layout",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch.torch_version.TorchVersion",
    "torch.UntypedStorage",
    "types.SimpleNamespace",
];

/// Names whose objects are dictionaries: their items come as pairs in the last argument, and by key.
pub(super) fn is_dict(name: &str) -> bool {
    matches!(
        name,
        "collections.OrderedDict"
            | "collections.Counter"
            | "collections.defaultdict"
            | "builtins.dict"
            | "__builtin__.dict"
    )
}

/// Names whose objects are sequences or sets: their items come in the first argument, and one by one.
pub(super) fn is_sequence(name: &str) -> bool {
    let class = name.strip_prefix("builtins.").or_else(|| name.strip_prefix("__builtin__."));
    name == "collections.deque" || class.is_some_and(|class| matches!(class, "list" | "tuple" | "set" | "frozenset"))
}

/// How a call that makes a tensor says what the tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rebuild {
    /// Storage, offset, shape, strides; the storage's class names the type.
    Strided,
    /// The same, with the type as the seventh argument.
    StridedTyped,
    /// The first argument is the tensor.
    Wrapper,
    /// The first and third arguments are another of these calls.
    Subclass,
    /// Sparse, quantised, nested, or without values.
    Unsupported,
}

/// What kind of tensor a call to `name` makes, when it makes one.
pub(super) fn rebuild(name: &str) -> Option<Rebuild> {
    Some(match name {
        "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => Rebuild::Strided,
        "torch._utils._rebuild_tensor_v3" => Rebuild::StridedTyped,
        // Torch before 0.4 made parameters and variables by calling their classes.
        "torch._utils._rebuild_parameter"
        | "torch._utils._rebuild_parameter_with_state"
        | "torch.autograd.variable.Variable"
        | "torch.nn.parameter.Buffer"
        | "torch.nn.parameter.Parameter" => Rebuild::Wrapper,
        "torch._tensor._rebuild_from_type" | "torch._tensor._rebuild_from_type_v2" => Rebuild::Subclass,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor"
        | "torch._utils._rebuild_device_tensor_from_numpy"
        | "torch._utils._rebuild_meta_tensor_no_storage"
        | "torch._utils._rebuild_nested_tensor"
        | "torch._utils._rebuild_qtensor"
        | "torch._utils._rebuild_sparse_csr_tensor"
        | "torch._utils._rebuild_sparse_tensor" => Rebuild::Unsupported,
        _ => return None,
    })
}

/// Whether `name` may appear in a checkpoint.
pub(super) fn is_known(name: &str) -> bool {
    OPAQUE.contains(&name)
        || is_dict(name)
        || is_sequence(name)
        || rebuild(name).is_some()
        || is_tensor_class(name)
        || storage(name).is_some()
        || dtype(name).is_some()
        // numpy's scalar types (`numpy.float64`, `numpy.dtypes.Float64DType`) are names of data, not of behaviour.
        || name.strip_prefix("numpy.dtypes.").is_some_and(|rest| rest.ends_with("DType") && !rest.contains('.'))
        || name.strip_prefix("numpy.").is_some_and(is_numpy_scalar)
}

fn is_numpy_scalar(name: &str) -> bool {
    let stem = name.trim_end_matches('_').trim_end_matches(|c: char| c.is_ascii_digit());
    matches!(
        stem,
        "float"
            | "int"
            | "uint"
            | "bool"
            | "complex"
            | "str"
            | "bytes"
            | "longlong"
            | "intc"
            | "datetime"
            | "timedelta"
    )
}

/// `torch.FloatTensor`, `torch.cuda.HalfTensor`, `torch.sparse.FloatTensor` …
fn is_tensor_class(name: &str) -> bool {
    let Some(name) = name.strip_prefix("torch.") else { return false };
    let name = name.strip_prefix("cuda.").unwrap_or(name);
    let name = name.strip_prefix("sparse.").unwrap_or(name);
    let class = name.strip_suffix("Tensor");
    class.is_some_and(|class| {
        matches!(class, "Float" | "Double" | "Half" | "BFloat16" | "Long" | "Int" | "Short" | "Char" | "Byte" | "Bool")
    })
}

/// Bytes of an element of a storage class, CPU or CUDA, and its type; `None` inside for types this tool has no use for.
pub(super) fn storage(name: &str) -> Option<(usize, Option<Dtype>)> {
    if is_untyped(name) {
        return Some((1, None));
    }
    let class = name.strip_prefix("torch.cuda.").or_else(|| name.strip_prefix("torch."))?;
    let dtype = match class {
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
        "ComplexDoubleStorage" => return Some((16, None)),
        "QInt32Storage" => return Some((4, None)),
        "QInt8Storage" | "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => return Some((1, None)),
        _ => return None,
    };
    Some((dtype.bitsize() / 8, Some(dtype)))
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
        "float8_e8m0fnu" => Dtype::F8_E8M0,
        "complex64" => Dtype::C64,
        "complex128" | "complex32" | "float8_e4m3fnuz" | "float8_e5m2fnuz" | "float4_e2m1fn_x2" | "qint8"
        | "qint32" | "quint2x4" | "quint4x2" | "quint8" => return Some(None),
        _ => return None,
    }))
}
