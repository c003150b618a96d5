//! The group `perch`: who may use the API's socket, and, where so configured, call from the host.
//!
//! Look-ups by the C library do not work reliably in a static program; the files are enough here.

use std::fs;

use anyhow::Context;
use perch_net::HostAccess;

use crate::config;

/// The group whose members operate this server.
const GROUP: &str = "perch";

/// The id of the group, if this host has it.
pub(crate) fn group_id() -> Option<u32> {
    find_group(&fs::read_to_string("/etc/group").ok()?).map(|(gid, _)| gid)
}

/// Who may call from the host, by ids. Later changes of the group count from the next start on.
///
/// # Errors
/// When the group is to decide and there is none.
pub(crate) fn host_access(configured: config::HostAccess) -> anyhow::Result<HostAccess> {
    Ok(match configured {
        config::HostAccess::None => HostAccess::None,
        config::HostAccess::Root => HostAccess::Root,
        config::HostAccess::All => HostAccess::All,
        config::HostAccess::Group => {
            let groups = fs::read_to_string("/etc/group").context("could not read /etc/group")?;
            let users = fs::read_to_string("/etc/passwd").context("could not read /etc/passwd")?;
            members(&groups, &users).context(
                "host_access = \"group\" needs the group perch; make it with `groupadd --system perch`, or choose \
                 \"root\", \"all\" or \"none\"",
            )?
        }
    })
}

fn members(groups: &str, users: &str) -> Option<HostAccess> {
    let (gid, names) = find_group(groups)?;
    let uid = |line: &str| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let own_group: Option<u32> = fields.next()?.parse().ok();
        (names.contains(&name) || own_group == Some(gid)).then_some(uid)
    };
    Some(HostAccess::Members { uids: users.lines().filter_map(uid).collect(), gids: vec![gid] })
}

/// The group's id, and the names of those who are in it beside their own group.
fn find_group(groups: &str) -> Option<(u32, Vec<&str>)> {
    let mut found = groups.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let fields = found.find(|fields| fields.first() == Some(&GROUP))?;
    let names = fields.get(3).copied().unwrap_or_default();
    Some((fields.get(2)?.parse().ok()?, names.split(',').map(str::trim).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000:Ann,,,:/home/ann:/bin/sh\n\
        bob:x:1001:990::/home/bob:/bin/sh\neve:x:1002:1002::/:/bin/sh\nbroken\n";

    fn check(groups: &str, wanted: Option<(&[u32], u32)>) {
        let wanted =
            wanted.map(|(uids, gid)| HostAccess::Members { uids: uids.to_vec(), gids: vec![gid] });
        assert_eq!(members(groups, USERS), wanted, "{groups}");
    }

    #[test]
    fn members_are_those_who_are_listed_and_those_whose_own_group_it_is() {
        check("root:x:0:\nperch:x:990:ann,nobody-known\n", Some((&[1000, 1001], 990)));
        check("perch:x:991:\n", Some((&[], 991)));
        check("perch:x:991", Some((&[], 991)));
    }

    #[test]
    fn without_the_group_nobody_is_a_member() {
        check("", None);
        check("perched:x:990:ann\n", None);
        check("perch:x:many:ann\n", None);
    }
}
