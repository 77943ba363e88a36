//! Any text is a recipe or an error, and a recipe written down is the same recipe; so is one with a setting changed to anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tec_zoo::train::Recipe;

fuzz_target!(|text: &str| {
    // What stands behind a zero is a setting.
    let (text, set) = text.split_once('\0').unwrap_or((text, ""));
    let set: Vec<String> = set.split('\0').filter(|set| !set.is_empty()).map(str::to_owned).collect();
    let Ok(recipe) = Recipe::parse("fuzz", text, &set) else { return };
    let written = recipe.to_text().expect("a recipe can be written");
    let again = Recipe::parse("fuzz", &written, &[]).expect("what was written is a recipe");
    assert!(recipe.differences(&again).is_empty(), "{written}");
    let _ = (recipe.needs_base(), recipe.step_settings());
});
