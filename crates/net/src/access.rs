//! Who on the host may call private networks: an nft table of its own on the host, `perch_access_<outside>`.
//!
//! Only packets that begin something are judged, by the user and group of the socket that sends them; what a
//! connection says later may leave when its socket is gone already. Public addresses are everybody's.

use crate::error::NetError;
use crate::firewall::PRIORITY_EARLY;
use crate::netlink::Socket;
use crate::nft::{Batch, Cmp, Hook, Rule};

/// First two bytes of every private network's addresses.
const PRIVATE: [u8; 2] = [0xfd, 0xaa];

/// Who on the host may call private networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAccess {
    /// Nobody, not even root.
    None,
    /// Processes of root.
    Root,
    /// Processes of root, of these users, and of those whose group is one of these.
    Members {
        /// User ids.
        uids: Vec<u32>,
        /// Group ids; only a process's own group counts, which `sg` and `newgrp` set.
        gids: Vec<u32>,
    },
    /// Every process.
    All,
}

/// Makes the table anew, or removes it where everybody may call; one transaction.
pub(crate) fn ensure(
    socket: &mut Socket,
    outside: &str,
    access: &HostAccess,
) -> Result<(), NetError> {
    if *access == HostAccess::All {
        return remove(socket, outside);
    }
    let table = table(outside);
    let mut batch = Batch::on(&table);
    batch.add_table();
    batch.add_filter("output", Hook::Output, PRIORITY_EARLY);
    batch.add_chain("callers");
    batch.delete_rules();
    batch.add_rule(
        Rule::on("output").v6().oif(Cmp::Eq, outside).daddr6_begins(PRIVATE).jump("callers"),
    );
    for rule in rules(access) {
        batch.add_rule(rule);
    }
    batch.commit(socket)
}

fn rules(access: &HostAccess) -> Vec<Rule> {
    let on = || Rule::on("callers");
    let (uids, gids): (&[u32], &[u32]) = match access {
        HostAccess::None | HostAccess::All => (&[], &[]),
        HostAccess::Root => (&[0], &[]),
        HostAccess::Members { uids, gids } => (uids, gids),
    };
    let root = matches!(access, HostAccess::Members { .. }).then(|| on().sender_user(0).accept());
    let mut rules = vec![on().syn(Cmp::Neq).accept()];
    rules.extend(root);
    rules.extend(uids.iter().map(|uid| on().sender_user(*uid).accept()));
    rules.extend(gids.iter().map(|gid| on().sender_group(*gid).accept()));
    // At once, as for what is not published: a refusal by ICMP costs a TCP caller a second.
    rules.extend([on().count().reset(), on().count().prohibit()]);
    rules
}

/// Removes the table, whether or not it exists.
pub(crate) fn remove(socket: &mut Socket, outside: &str) -> Result<(), NetError> {
    crate::firewall::remove_table(socket, &table(outside))
}

fn table(outside: &str) -> String {
    format!("perch_access_{outside}")
}
