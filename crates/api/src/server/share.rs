//! How many of the places for connections over TCP one stranger may hold, and one token.
//!
//! A connection counts for its address until it has shown a good token, then for the token: an
//! office behind one address is many people, and one token may call from many addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whose a connection is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    /// Nobody has said who it is.
    Address(IpAddr),
    /// The token with this id.
    Token(String),
}

/// Counts the places that are held.
#[derive(Debug, Default)]
pub(super) struct Shares(Mutex<BTreeMap<Holder, u32>>);

/// One place that is held; dropped, it is given back.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    holder: Holder,
}

impl Holder {
    /// An address, or the network that its owner can choose addresses of.
    pub(super) fn of_address(address: IpAddr) -> Self {
        // Whoever has one IPv6 address has 2^64 of them.
        const OWN: u128 = u64::MAX as u128;
        match address.to_canonical() {
            IpAddr::V6(address) => {
                Self::Address(Ipv6Addr::from_bits(address.to_bits() & !OWN).into())
            }
            address @ IpAddr::V4(_) => Self::Address(address),
        }
    }

    /// Places that it may hold.
    pub(super) fn places_max(&self) -> u32 {
        match self {
            // An eighth of all: strangers with a few addresses leave room, and the time that a
            // connection may stay a stranger's is short.
            Self::Address(_) => 32,
            // Half of all: a token's long polls and streams leave the other half.
            Self::Token(_) => 128,
        }
    }
}

impl Shares {
    /// Takes a place; `None` when the holder has all of its own.
    pub(super) fn take(self: &Arc<Self>, holder: Holder) -> Option<Share> {
        let mut held = self.held();
        let count = held.entry(holder.clone()).or_default();
        if holder.places_max() <= *count {
            return None;
        }
        *count += 1;
        Some(Share { shares: Arc::clone(self), holder })
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Holder, u32>> {
        // Counts are whole after each step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    pub(super) fn holder(&self) -> &Holder {
        &self.holder
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        if let Some(count) = held.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Holder {
        Holder::of_address(text.parse().expect("an address"))
    }

    #[test]
    fn a_holder_takes_its_share_and_no_more_until_it_gives_one_back() {
        let shares = Arc::new(Shares::default());
        let stranger = address("192.0.2.1");
        let mut taken: Vec<_> = (0..stranger.places_max())
            .map(|_| shares.take(stranger.clone()).expect("free"))
            .collect();
        assert!(shares.take(stranger.clone()).is_none());
        assert!(shares.take(address("192.0.2.2")).is_some(), "others are not touched");
        taken.pop();
        assert!(shares.take(stranger).is_some());
        drop(taken);
        assert!(shares.held().is_empty(), "nothing is remembered of who is gone");
    }

    #[test]
    fn who_can_choose_addresses_is_one_stranger() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:192.0.2.1"), address("192.0.2.1"));
    }
}
