//! The manifests the program carries. A test holds this list against the folder.

macro_rules! manifests {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../zoo/", $name, ".toml")))),*]
    };
}

/// Name and text of every manifest of `zoo/`, sorted by name.
pub(super) const EMBEDDED: &[(&str, &str)] = manifests![
    "dino-vitb16",
    "dino-vitb8",
    "dino-vits16",
    "dino-vits8",
    "dinov2-vitb14",
    "dinov2-vitb14-reg",
    "dinov2-vitg14",
    "dinov2-vitg14-reg",
    "dinov2-vitl14",
    "dinov2-vitl14-reg",
    "dinov2-vits14",
    "dinov2-vits14-reg",
    "ibot-vitb",
    "ibot-vitb-22k",
    "ibot-vitb-randmask",
    "ibot-vitl",
    "ibot-vitl-22k",
    "ibot-vitl-randmask",
    "ibot-vits",
    "mae-vitb",
    "mae-vitb-ft",
    "mae-vitb-full",
    "mae-vitb-visualize",
    "mae-vith",
    "mae-vith-ft",
    "mae-vith-full",
    "mae-vith-visualize",
    "mae-vitl",
    "mae-vitl-ft",
    "mae-vitl-full",
    "mae-vitl-visualize",
    "mocov3-vitb",
    "mocov3-vits",
    "tec-ibot-vitb-300ep",
    "tec-ibot-vitb-800ep",
    "tec-mae-vitb-300ep",
    "tec-mae-vitb-800ep",
    "tec-mae-vitl-300ep",
    "tec-mae300ep-vitb-100ep",
];
