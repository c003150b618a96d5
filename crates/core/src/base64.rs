//! The standard alphabet of base64, with padding: how files travel in JSON, and signatures in headers.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Writes bytes as text.
pub fn encode_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for part in bytes.chunks(3) {
        let held = part.iter().fold(0_u32, |held, byte| held << 8 | u32::from(*byte));
        let held = held << (8 * (3 - part.len()));
        for at in 0..4 {
            let index = (held >> (18 - 6 * at) & 63) as usize;
            text.push(if part.len() < at { '=' } else { char::from(ALPHABET[index]) });
        }
    }
    text
}

/// Reads such a text; white space in it does not count. `None` when it is none.
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let letters: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if !letters.len().is_multiple_of(4) {
        return None;
    }
    let bare = letters.strip_suffix(b"==").or(letters.strip_suffix(b"=")).unwrap_or(&letters);
    let (mut bytes, mut held, mut bits) = (Vec::with_capacity(bare.len()), 0_u32, 0);
    for letter in bare {
        let value = ALPHABET.iter().position(|known| known == letter)?;
        held = (held << 6 | value as u32) & 0xffff;
        bits += 6;
        if 8 <= bits {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_as_everybody_writes_them() {
        let pairs =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")];
        for (bytes, text) in pairs {
            assert_eq!(encode_base64(bytes.as_bytes()), text);
            assert_eq!(decode_base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode_base64(&encode_base64(&all)), Some(all));
        assert_eq!(decode_base64("Zm9v\nYg=\r\n=").as_deref(), Some(b"foob".as_slice()));
    }

    #[test]
    fn what_is_no_base64_is_none() {
        for bad in ["Z", "Zg", "Zg=", "Z===", "Zm9v!", "Zg==Zg==", "_-==", "hunter2"] {
            assert_eq!(decode_base64(bad), None, "{bad}");
        }
    }
}
