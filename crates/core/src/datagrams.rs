//! What is kept of a UDP session while its Machine wakes: the first datagrams, in their order.

use std::collections::VecDeque;
use std::time::Duration;

/// A session that carries nothing in either direction for so long is over; until then it is load.
pub const SESSION_SILENCE: Duration = Duration::from_secs(30);
/// Datagrams that wait for one session's Machine: what a client says before it expects an answer.
pub const WAITING_MAX: usize = 16;
/// Their bytes: the largest datagram fits.
pub const WAITING_BYTES_MAX: usize = 64 << 10;

/// Datagrams of one session that its Machine cannot take yet.
#[derive(Debug, Default)]
pub struct Backlog {
    datagrams: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Backlog {
    /// Keeps a datagram behind the others; `false` if there is no room for it.
    #[must_use = "what is not kept is lost, and is to be counted"]
    pub fn push(&mut self, datagram: &[u8]) -> bool {
        let bytes = self.bytes + datagram.len();
        if self.datagrams.len() == WAITING_MAX || WAITING_BYTES_MAX < bytes {
            return false;
        }
        self.datagrams.push_back(datagram.into());
        self.bytes = bytes;
        true
    }

    /// The one that came first.
    pub fn first(&self) -> Option<&[u8]> {
        self.datagrams.front().map(AsRef::as_ref)
    }

    /// Takes it out.
    pub fn pop(&mut self) -> Option<Box<[u8]>> {
        let first = self.datagrams.pop_front()?;
        self.bytes -= first.len();
        Some(first)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sixteen_are_kept_in_their_order() {
        let mut backlog = Backlog::default();
        let kept = (0..20_u8).filter(|n| backlog.push(&[*n])).count();
        assert_eq!((kept, backlog.len()), (WAITING_MAX, WAITING_MAX));
        assert_eq!(backlog.first(), Some(&[0_u8][..]));
        let order: Vec<u8> = std::iter::from_fn(|| backlog.pop()).map(|d| d[0]).collect();
        assert_eq!(order, (0..16).collect::<Vec<u8>>());
        assert!(backlog.push(b"again"), "there is room again");
    }

    #[test]
    fn one_that_is_too_long_for_the_rest_of_the_room_leaves_it_to_shorter_ones() {
        let mut backlog = Backlog::default();
        assert!(backlog.push(&vec![0; WAITING_BYTES_MAX - 2]));
        assert!(!backlog.push(b"abc"));
        assert!(backlog.push(b"ab"));
        assert!(!backlog.push(b"a"));
        assert!(backlog.push(b""), "an empty one takes no bytes");
        assert!(Backlog::default().push(&vec![0; 65_527]), "the largest datagram of UDP");
    }
}
