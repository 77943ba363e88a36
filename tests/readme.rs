//! The README's commands run as written, one after another, and once more.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::cli::{Program, fixture};

/// Lines that are not run, by how they begin, and why.
const LEFT_OUT: [(&str, &str); 8] = [
    ("cargo ", "builds the program that is tested"),
    ("tec-zoo fetch ", "needs the network, or what came from there"),
    ("tec-zoo export ibot-vitb ", "needs what was fetched"),
    ("tec-zoo bundle ", "needs what was fetched"),
    ("tec-zoo pretrain --base ibot-vitb ", "needs what was fetched"),
    ("tec-zoo identify ", "knows what was fetched, and says with its exit code that nothing was"),
    ("tec-zoo matrix ", "writes nothing, and takes half a minute"),
    ("tec-zoo check ibot.onnx --against ibot --runtimes ", "names a runtime that may not be here"),
];

/// What a fixture needs that a released checkpoint does not: its width is nobody's, and twenty epochs take a minute.
const ADDED: [(&str, &str); 3] = [
    ("tec-zoo convert checkpoint.pth ", " --heads 4"),
    ("tec-zoo pretrain --branch-from run ", " --set optimizer.epochs=3"),
    ("tec-zoo pretrain --base ibot --data photos/ ", " --set optimizer.epochs=2 --set optimizer.warmup_epochs=1"),
];

/// The lines of every `sh` block, without comments.
fn commands(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap_or_default().trim_end());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_readmes_commands_run_as_written_and_once_more() {
    let program = Program::new();
    let at = |name: &str| program.dir().join(name);
    fs::copy(fixture("ibot_checkpoint_full.pth"), at("checkpoint.pth")).unwrap();
    fs::copy(fixture("ibot_expected.safetensors"), at("activations.safetensors")).unwrap();
    for folder in ["images", "photos"] {
        fs::create_dir(at(folder)).unwrap();
        for i in 0..32_u32 {
            let picture = image::RgbImage::from_fn(72, 64, |x, y| image::Rgb([x as u8 * 3, y as u8 * 3, i as u8 * 7]));
            picture.save(at(folder).join(format!("{i}.png"))).unwrap();
        }
    }
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let commands = commands(&readme);
    let binaries = Path::new(env!("CARGO_BIN_EXE_tec-zoo")).parent().unwrap();
    let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap_or_default());
    let mut unused: BTreeSet<&str> = LEFT_OUT.iter().chain(&ADDED).map(|(line, _)| *line).collect();
    let mut ran = 0;
    for round in 1..=2 {
        for command in &commands {
            let begins = |(line, _): &&(&'static str, &str)| command.starts_with(line);
            if let Some((line, _)) = LEFT_OUT.iter().find(begins) {
                unused.remove(line);
                if !line.contains("--runtimes") || std::env::var_os("ORT_DYLIB_PATH").is_none() {
                    continue;
                }
            }
            let added = ADDED.iter().find(begins);
            if let Some((line, _)) = added {
                unused.remove(line);
            }
            let line = format!("{command}{}", added.map_or("", |(_, added)| added));
            let output = Command::new("sh")
                .args(["-c", &line])
                .current_dir(program.dir())
                .env("PATH", &path)
                .env("TEC_ZOO_HOME", at("home"))
                .output()
                .unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "round {round}: {line}\n{stderr}");
            ran += 1;
        }
    }
    assert!(ran >= 2 * 14, "{ran} commands ran: {commands:?}");
    assert!(unused.is_empty(), "the README has none of these any more: {unused:?}");
}
