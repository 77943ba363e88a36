//! What Rust's compiler cannot translate: MPI's calls (feature `mpi`) and the GPU's kernels (feature `cuda`). Without those
//! features, nothing happens.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "mpi")]
    mpi();
    #[cfg(feature = "cuda")]
    cuda();
}

/// Compiles the kernels to PTX, which the driver translates for its GPU: Ampere and later.
#[cfg(feature = "cuda")]
fn cuda() {
    use std::path::{Path, PathBuf};
    const KERNELS: &str = "src/kernels/cuda";
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed={KERNELS}");
    let toolkit = std::env::var_os("CUDA_HOME").or_else(|| std::env::var_os("CUDA_PATH"));
    let nvcc = match (std::env::var_os("NVCC"), toolkit) {
        (Some(nvcc), _) => PathBuf::from(nvcc),
        (None, Some(toolkit)) => Path::new(&toolkit).join("bin/nvcc"),
        (None, None) => PathBuf::from("nvcc"),
    };
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let Ok(files) = std::fs::read_dir(KERNELS) else { fail("cuda", "its kernels are not here", KERNELS) };
    for source in files.flatten().map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "cu")) {
        let target = out.join(source.file_stem().unwrap_or_default()).with_extension("ptx");
        // No fast math: what these kernels wait for is memory, and sums are compared with the CPU's.
        let run = std::process::Command::new(&nvcc)
            .args(["-ptx", "-O3", "-std=c++17", "-arch=compute_80", "-o"])
            .arg(&target)
            .arg(&source)
            .output();
        match run {
            Ok(run) if run.status.success() => {}
            Ok(run) => fail("cuda", &format!("{}:\n{}", source.display(), String::from_utf8_lossy(&run.stderr)), NVCC),
            Err(error) => fail("cuda", &format!("`{}` cannot be run: {error}", nvcc.display()), NVCC),
        }
    }
}

#[cfg(feature = "cuda")]
const NVCC: &str = "install a CUDA toolkit, and name it in CUDA_HOME or its compiler in NVCC (docs/cuda.md)";

/// Compiles the calls with the MPI library's own compiler, `mpicc` or what `MPICC` names, and links the library.
#[cfg(feature = "mpi")]
fn mpi() {
    const SOURCE: &str = "src/train/distributed/mpi.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=MPICC");
    println!("cargo:rerun-if-env-changed=PATH");
    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    // Both Open MPI's wrapper and MPICH's answer `-show` with the command they stand for.
    let shown = std::process::Command::new(&mpicc).arg("-show").output();
    let command = match &shown {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        Ok(output) => fail("mpi", &format!("`{mpicc} -show`: {}", String::from_utf8_lossy(&output.stderr)), MPICC),
        Err(error) => fail("mpi", &format!("`{mpicc} -show`: {error}"), MPICC),
    };
    cc::Build::new().compiler(&mpicc).file(SOURCE).compile("tec_zoo_mpi");
    for word in command.split_whitespace() {
        if let Some(folder) = word.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={folder}");
            // The library of a folder the loader does not know is found where it was linked.
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        } else if let Some(library) = word.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}

#[cfg(feature = "mpi")]
const MPICC: &str = "install an MPI library (Debian: libopenmpi-dev openmpi-bin), or name its compiler in MPICC";

#[cfg(any(feature = "mpi", feature = "cuda"))]
fn fail(feature: &str, reason: &str, hint: &str) -> ! {
    eprintln!("the feature `{feature}` cannot be built: {reason}\nhint: {hint}");
    std::process::exit(1)
}
