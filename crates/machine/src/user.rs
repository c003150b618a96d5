//! Turns an image's `USER` into numbers, by the image's own `/etc/passwd` and `/etc/group`.

use crate::bundle::IDS;

/// Who the program runs as, in ids of the Machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory, `/` when unknown.
    pub(crate) home: String,
}

/// Why a user cannot be resolved.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadUser {
    #[error("user {0:?} is not in the image's /etc/passwd")]
    UnknownUser(String),
    #[error("group {0:?} is not in the image's /etc/group")]
    UnknownGroup(String),
    #[error("user or group id {0} is not below {IDS}")]
    OutOfRange(u32),
}

/// Resolves `user`: empty (root), `name`, `uid`, each with an optional `:group`.
pub(crate) fn resolve(user: &str, passwd: &str, group: &str) -> Result<User, BadUser> {
    let (name, wanted_group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let entry = passwd.lines().map(fields).find(|line| {
        line.first() == Some(&name) || (is_number(name) && line.get(2) == Some(&name))
    });
    let mut resolved = match &entry {
        Some(line) => from_entry(line, group),
        // Every image has that one.
        None if name == "root" => from_entry(&["root", "", "0", "0"], group),
        None => from_number(name).ok_or_else(|| BadUser::UnknownUser(name.to_owned()))?,
    };
    if let Some(wanted) = wanted_group.filter(|wanted| !wanted.is_empty()) {
        resolved.gid = group_id(wanted, group)?;
        // An explicit group replaces all others, as Docker does.
        resolved.groups.clear();
    }
    check_range(resolved)
}

fn fields(line: &str) -> Vec<&str> {
    line.split(':').collect()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn number(line: &[&str], index: usize) -> u32 {
    line.get(index).and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn from_entry(line: &[&str], group: &str) -> User {
    let name = line.first().copied().unwrap_or_default();
    let home = line.get(5).copied().filter(|home| !home.is_empty()).unwrap_or("/");
    User {
        uid: number(line, 2),
        gid: number(line, 3),
        groups: member_of(name, group),
        home: home.to_owned(),
    }
}

fn from_number(name: &str) -> Option<User> {
    let uid = name.parse().ok().filter(|_| is_number(name))?;
    Some(User { uid, gid: 0, groups: Vec::new(), home: "/".to_owned() })
}

fn member_of(name: &str, group: &str) -> Vec<u32> {
    let lines = group.lines().map(fields);
    let member = |line: &Vec<&str>| {
        line.get(3).is_some_and(|members| members.split(',').any(|member| member == name))
    };
    lines.filter(member).map(|line| number(&line, 2)).collect()
}

fn group_id(wanted: &str, group: &str) -> Result<u32, BadUser> {
    let known = group.lines().map(fields).find(|line| line.first() == Some(&wanted));
    match known {
        Some(line) => Ok(number(&line, 2)),
        None => wanted.parse().map_err(|_| BadUser::UnknownGroup(wanted.to_owned())),
    }
}

fn check_range(user: User) -> Result<User, BadUser> {
    let mut ids = [user.uid, user.gid].into_iter().chain(user.groups.iter().copied());
    match ids.find(|id| *id >= IDS) {
        Some(id) => Err(BadUser::OutOfRange(id)),
        None => Ok(user),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\n";

    fn check(user: &str, uid: u32, gid: u32, groups: &[u32], home: &str) {
        let expected = User { uid, gid, groups: groups.to_vec(), home: home.to_owned() };
        assert_eq!(resolve(user, PASSWD, GROUP), Ok(expected), "{user}");
    }

    #[test]
    fn names_and_numbers_resolve_as_docker_does() {
        check("", 0, 0, &[10], "/root");
        check("app", 1000, 1001, &[10], "/home/app");
        check("1000", 1000, 1001, &[10], "/home/app");
        check("1000:wheel", 1000, 10, &[], "/home/app");
        check("4242", 4242, 0, &[], "/");
        check("4242:4343", 4242, 4343, &[], "/");
    }

    #[test]
    fn an_image_without_passwd_still_has_root() {
        assert_eq!(resolve("", "", "").map(|user| user.uid), Ok(0));
        assert_eq!(resolve("root", "", "").map(|user| (user.uid, user.gid)), Ok((0, 0)));
    }

    #[test]
    fn unknown_names_and_ids_beyond_the_range_are_refused() {
        assert_eq!(resolve("nobody", PASSWD, GROUP), Err(BadUser::UnknownUser("nobody".into())));
        assert_eq!(resolve("app:staff", PASSWD, GROUP), Err(BadUser::UnknownGroup("staff".into())));
        assert_eq!(resolve("70000", PASSWD, GROUP), Err(BadUser::OutOfRange(70_000)));
    }
}
