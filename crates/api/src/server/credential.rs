//! Reads the token out of a request's `Authorization` header.

use http::HeaderMap;
use http::header::AUTHORIZATION;

// Longer than any token of ours; what is longer is none.
const HEADER_BYTES_MAX: usize = 1024;

/// The token: as flyctl's two schemes carry it, or as the password of `docker login`.
pub(super) fn token(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?;
    if HEADER_BYTES_MAX < text.len() {
        return None;
    }
    let (scheme, value) = text.split_once(' ')?;
    let value = value.trim();
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" | "flyv1" => Some(value.to_owned()),
        "basic" => {
            let pair = String::from_utf8(base64(value)?).ok()?;
            pair.split_once(':').map(|(_, password)| password.to_owned())
        }
        _ => None,
    }
}

/// Decodes the standard alphabet; lax about what follows the padding, since the token is checked.
fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0_u32);
    for byte in text.bytes().take_while(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|letter| *letter == byte)?;
        bits = (bits << 6 | value as u32) & 0xffff;
        held += 6;
        if 8 <= held {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: &str, wanted: Option<&str>) {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().expect("a header"));
        assert_eq!(token(&headers).as_deref(), wanted, "{header}");
    }

    #[test]
    fn what_is_no_token_is_none() {
        check("", None);
        check("Bearer", None);
        check("Digest x", None);
        check("Basic eDp0b2tl*g==", None);
        check("Basic eHRva2Vu", None);
        check(&format!("Bearer {}", "a".repeat(2000)), None);
        assert_eq!(token(&HeaderMap::new()), None);
    }

    #[test]
    fn a_token_comes_by_either_scheme_of_flyctl_or_as_a_password() {
        check("Bearer perch_1", Some("perch_1"));
        check("bearer  perch_1", Some("perch_1"));
        check("FlyV1 perch_1", Some("perch_1"));
        check("Basic eDp0b2tlbg==", Some("token"));
        check("Basic eDp0b2tlbnM=", Some("tokens"));
    }
}
