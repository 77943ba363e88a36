//! The recipes the program carries. A test holds this list against the folder.

macro_rules! recipes {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../recipes/", $name, ".toml")))),*]
    };
}

/// Name and text of every recipe of `recipes/`, sorted by name.
pub(super) const EMBEDDED: &[(&str, &str)] = recipes![
    "mae-vitb-800ep",
    "nano",
    "nano-pixels",
    "tec-ibot-vitb-300ep",
    "tec-ibot-vitb-800ep",
    "tec-mae-vitb-300ep",
    "tec-mae-vitb-800ep",
    "tec-mae-vitl-300ep",
    "tec-mae300ep-vitb-100ep",
];
