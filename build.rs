//! What Rust's compiler cannot translate: MPI's calls (feature `mpi`) and the GPU's kernels (feature `cuda`). And the source's
//! revision, which runs write down.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TEC_ZOO_REVISION");
    if let Some(revision) = std::env::var("TEC_ZOO_REVISION").ok().or_else(packaged).or_else(checked_out) {
        println!("cargo:rustc-env=TEC_ZOO_REVISION={revision}");
    }
    #[cfg(feature = "mpi")]
    mpi();
    #[cfg(feature = "cuda")]
    cuda();
}

/// The revision a published package was made from.
fn packaged() -> Option<String> {
    const FILE: &str = ".cargo_vcs_info.json";
    let text = std::fs::read_to_string(FILE).ok()?;
    println!("cargo:rerun-if-changed={FILE}");
    let hash = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    hash.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| hash.to_owned())
}

/// The revision of the working tree; none without git. Changes on top of it are not looked for.
fn checked_out() -> Option<String> {
    // The crate's own repository: not one it was unpacked into.
    std::fs::exists(".git").ok().filter(|exists| *exists)?;
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        output.status.success().then_some(text)
    };
    let head = git(&["rev-parse", "HEAD"])?;
    // HEAD changes with the branch, the branch's own file or the packed ones with a commit.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && std::path::Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    Some(head)
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
        let run = Command::new(&nvcc)
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
    let shown = Command::new(&mpicc).arg("-show").output();
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
