//! Addresses: which are acceptable, and how they are shown.

use reqwest::Url;

/// Whether bytes may come from `url`: https, or this very machine.
pub(super) fn is_secure(url: &Url, allow_http: bool) -> bool {
    match url.scheme() {
        "https" => true,
        "http" => allow_http || is_local(url),
        _ => false,
    }
}

/// Whether `url` is on this machine.
pub(super) fn is_local(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `address` without what may be secret: user, password, query.
pub(super) fn shown(address: &str) -> String {
    let Ok(mut url) = Url::parse(address) else { return "an address that cannot be read".to_owned() };
    // Fails only for addresses that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// Where a mirror keeps the file of `address`: `<mirror>/<host>/<path>`.
pub(super) fn mirrored(mirror: &str, address: &str) -> Option<String> {
    let url = Url::parse(address).ok()?;
    Some(format!("{}/{}{}", mirror.trim_end_matches('/'), url.host_str()?, url.path()))
}
