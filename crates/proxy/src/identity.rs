//! Who calls, told to Machines and signed: `Fly-Src` and `Fly-Src-Signature` (FC-40 to FC-44).
//!
//! What is said of a caller is the same for all its requests of a second. So it is written and signed once, by whoever
//! asks first, and shared: a connection holds the *stamp* of its caller, and a request costs a comparison of seconds and
//! the bytes. Nothing is signed for who does not call.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;

use perch_core::base64::encode_base64;
use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::clock;
use crate::control::SigningSeed;

/// Stamps kept for callers without a connection, 400 bytes each: with more callers, some are signed for more often.
const KEPT_MAX: usize = 4096;
const SEED_BYTES: usize = 32;
const FIELD: &[u8] = b"Fly-Src: ";

/// The key, and what was signed with it.
#[derive(Debug, Default)]
pub(crate) struct Signer {
    key: Rc<Key>,
    stamps: RefCell<HashMap<IpAddr, Rc<Stamp>>>,
}

#[derive(Default)]
struct Key {
    pair: RefCell<Option<Ed25519KeyPair>>,
    signed: Cell<u64>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} signed)", self.signed.get())
    }
}

impl Signer {
    /// Signs with this key from the next second on, or with none.
    pub(crate) fn set_key(&self, seed: Option<&SigningSeed>) {
        let pair = seed.and_then(pair_of);
        if seed.is_some() && pair.is_none() {
            tracing::error!("the key of Fly-Src cannot be used: Machines are not told who calls");
        }
        if public(&pair) == public(&self.key.pair.borrow()) {
            return;
        }
        *self.key.pair.borrow_mut() = pair;
        // Whoever holds a stamp asks again.
        for stamp in self.stamps.borrow().values() {
            stamp.lines.borrow_mut().second = 0;
        }
    }

    /// The stamp of who calls from `ip`: of `who` in the words of FC-40.
    pub(crate) fn stamp(&self, ip: IpAddr, who: &str) -> Rc<Stamp> {
        let mut stamps = self.stamps.borrow_mut();
        if let Some(stamp) = stamps.get(&ip).filter(|stamp| *stamp.who == *who) {
            return Rc::clone(stamp);
        }
        let key = Rc::clone(&self.key);
        let stamp = Rc::new(Stamp { key, who: who.into(), lines: RefCell::default() });
        if stamps.len() == KEPT_MAX {
            let second = clock::unix_secs();
            let is_used =
                |it: &Rc<Stamp>| 1 < Rc::strong_count(it) || second <= it.lines.borrow().second;
            stamps.retain(|_, stamp| is_used(stamp));
        }
        if stamps.len() < KEPT_MAX || stamps.contains_key(&ip) {
            stamps.insert(ip, Rc::clone(&stamp));
        }
        stamp
    }

    /// How often something was signed.
    #[cfg(test)]
    pub(crate) fn signed(&self) -> u64 {
        self.key.signed.get()
    }
}

fn pair_of(seed: &SigningSeed) -> Option<Ed25519KeyPair> {
    let digits = seed.0.as_bytes();
    if digits.len() != 2 * SEED_BYTES || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    let bytes = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<_>>>()?;
    Ed25519KeyPair::from_seed_unchecked(&bytes).ok()
}

fn public(pair: &Option<Ed25519KeyPair>) -> Option<&[u8]> {
    pair.as_ref().map(|pair| pair.public_key().as_ref())
}

/// What is said of one caller.
#[derive(Debug)]
pub(crate) struct Stamp {
    key: Rc<Key>,
    who: Box<str>,
    lines: RefCell<Lines>,
}

/// Both fields with their ends, as of this second; empty without a key.
#[derive(Debug, Default)]
struct Lines {
    second: u64,
    text: Vec<u8>,
}

impl Stamp {
    /// Appends both fields as of this second.
    pub(crate) fn write(&self, unix_secs: u64, out: &mut Vec<u8>) {
        let mut lines = self.lines.borrow_mut();
        if lines.second != unix_secs {
            self.sign(unix_secs, &mut lines);
        }
        out.extend_from_slice(&lines.text);
    }

    /// Calls `act` with what both fields say as of now, if there is a key.
    pub(crate) fn with_values<T>(&self, act: impl FnOnce(Option<(&str, &str)>) -> T) -> T {
        let mut fields = Vec::new();
        self.write(clock::unix_secs(), &mut fields);
        let text = std::str::from_utf8(&fields).unwrap_or_default();
        let mut values = text.lines().filter_map(|line| Some(line.split_once(": ")?.1));
        act(values.next().zip(values.next()))
    }

    /// Writes this second over an earlier one in a head that has waited (FC-44: an old one is worth nothing).
    pub(crate) fn renew(&self, message: &mut [u8]) {
        let second = clock::unix_secs();
        let mut lines = self.lines.borrow_mut();
        if lines.second != second {
            self.sign(second, &mut lines);
        }
        let find =
            |what: &[u8], message: &[u8]| message.windows(what.len()).position(|w| w == what);
        // What is behind the head is not ours.
        let head_len = find(b"\r\n\r\n", message).map_or(0, |at| at + 2);
        let Some(at) = find(FIELD, &message[..head_len]) else { return };
        let Some(old) = message[..head_len].get_mut(at..at + lines.text.len()) else { return };
        let same_len = FIELD.len() + self.who.len();
        if old.ends_with(b"\r\n") && old.get(..same_len) == lines.text.get(..same_len) {
            old.copy_from_slice(&lines.text);
        }
    }

    #[cold]
    fn sign(&self, second: u64, lines: &mut Lines) {
        lines.second = second;
        lines.text.clear();
        let pair = self.key.pair.borrow();
        let Some(pair) = pair.as_ref() else { return };
        self.key.signed.set(self.key.signed.get() + 1);
        lines.text.extend_from_slice(FIELD);
        lines.text.extend_from_slice(format!("{};ts={second}", self.who).as_bytes());
        let signature = pair.sign(&lines.text[FIELD.len()..]);
        let signature = encode_base64(signature.as_ref());
        lines.text.extend_from_slice(format!("\r\nFly-Src-Signature: {signature}\r\n").as_bytes());
    }
}

/// Whether a caller wants to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// At a Flycast address (FC-40).
    Given,
    /// At a public one each request says so (FC-43).
    Asked,
}

#[cfg(test)]
mod tests {
    use ring::signature::{ED25519, UnparsedPublicKey};

    use super::*;

    fn seed(byte: &str) -> SigningSeed {
        SigningSeed(byte.repeat(SEED_BYTES))
    }

    fn signer() -> Signer {
        let signer = Signer::default();
        signer.set_key(Some(&seed("5a")));
        signer
    }

    fn ip(number: u16) -> IpAddr {
        std::net::Ipv6Addr::new(0xfdaa, 0, 0, 0, 0, 0, 0, number).into()
    }

    fn written(stamp: &Stamp, second: u64) -> String {
        let mut out = Vec::new();
        stamp.write(second, &mut out);
        String::from_utf8(out).expect("fields are text")
    }

    #[test]
    fn the_signature_is_good_for_exactly_what_is_said() {
        let text = written(&signer().stamp(ip(1), "instance=m;app=a;org=o"), 1_700_000_000);
        let (value, rest) = text.split_once("\r\n").expect("two lines");
        let value = value.strip_prefix("Fly-Src: ").expect("the first is it");
        assert_eq!(value, "instance=m;app=a;org=o;ts=1700000000");
        let signature = rest.strip_prefix("Fly-Src-Signature: ").expect("the second signs");
        let signature = perch_core::base64::decode_base64(signature.trim()).expect("base64");
        let public = pair_of(&seed("5a")).expect("a key");
        let public = UnparsedPublicKey::new(&ED25519, public.public_key().as_ref());
        assert!(public.verify(value.as_bytes(), &signature).is_ok());
        assert!(public.verify(value.replace("a", "b").as_bytes(), &signature).is_err());
    }

    #[test]
    fn a_caller_is_signed_for_once_a_second_whatever_its_connections() {
        let signer = signer();
        for _ in 0..100 {
            let stamp = signer.stamp(ip(1), "peer=host");
            assert_eq!(written(&stamp, 7), written(&stamp, 7));
        }
        assert_eq!(signer.signed(), 1);
        written(&signer.stamp(ip(1), "peer=host"), 8);
        assert_eq!(signer.signed(), 2);
        assert!(written(&signer.stamp(ip(1), "peer=other"), 8).contains("peer=other"));
    }

    #[test]
    fn what_is_kept_is_bounded_and_who_is_connected_keeps_his() {
        let signer = signer();
        let held = signer.stamp(ip(0), "peer=host");
        for number in 1..=2 * KEPT_MAX as u16 {
            written(&signer.stamp(ip(number), "peer=host"), 7);
        }
        assert!(signer.stamps.borrow().len() <= KEPT_MAX);
        assert!(Rc::ptr_eq(&held, &signer.stamp(ip(0), "peer=host")));
    }

    #[test]
    fn without_a_good_key_nothing_is_said() {
        let signer = Signer::default();
        let stamp = signer.stamp(ip(1), "peer=host");
        for bad in [None, Some("5a"), Some(&*"zz".repeat(SEED_BYTES)), Some("")] {
            signer.set_key(bad.map(|text| SigningSeed(text.to_owned())).as_ref());
            assert_eq!(written(&stamp, 7), "", "{bad:?}");
        }
        signer.set_key(Some(&seed("01")));
        assert_ne!(written(&stamp, 7), "", "it is known now");
        assert!(!format!("{:?}", seed("01")).contains("01"));
    }

    #[test]
    fn a_head_that_has_waited_is_signed_anew_and_its_body_is_left_alone() {
        let signer = signer();
        let stamp = signer.stamp(ip(1), "peer=host");
        let old = written(&stamp, 1_000_000_000);
        let body = format!("\r\n\r\n{old}");
        let mut message = format!("GET / HTTP/1.1\r\nHost: a\r\n{old}X: y{body}").into_bytes();
        stamp.renew(&mut message);
        let text = String::from_utf8(message).expect("text");
        let new = written(&stamp, clock::unix_secs());
        assert!(text.contains(&format!("{new}X: y{body}")), "{text}");
        let mut without = format!("GET / HTTP/1.1\r\nHost: a{body}").into_bytes();
        stamp.renew(&mut without);
        assert!(without.ends_with(old.as_bytes()));
    }
}
