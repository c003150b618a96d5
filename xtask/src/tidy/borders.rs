//! What a crate must never do, as words that must not appear in its product code.

use super::{RustFile, Violation};
use crate::source::words;

struct Border {
    dir: &'static str,
    words: &'static [&'static str],
    paths: &'static [&'static str],
    why: &'static str,
}

const BORDERS: &[Border] = &[
    Border {
        dir: "crates/core/src/",
        words: &[
            "async",
            "await",
            "Instant",
            "SystemTime",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "UnixStream",
            "UnixListener",
            "HashMap",
            "HashSet",
            "serde",
            "Serialize",
            "Deserialize",
            "tokio",
            "rand",
            "getrandom",
            "println",
            "eprintln",
            "tracing",
            "thread_local",
        ],
        paths: &["std::fs", "std::env", "std::process", "std::thread", "std::io", "std::os"],
        why: "core decides and does nothing else: no clock, socket, file, task, randomness or serde",
    },
    Border {
        dir: "crates/proxy/src/",
        words: &[
            "setns",
            "unshare",
            "clone3",
            "fork",
            "pivot_root",
            "chroot",
            "umount",
            "mount",
            "ptrace",
            "setuid",
            "setgid",
            "setresuid",
            "capset",
            "bpf",
            "Command",
            "netlink",
            "kill",
            "set_ip_transparent",
            "IP_TRANSPARENT",
            "IPV6_TRANSPARENT",
            "rusqlite",
            "mknod",
        ],
        paths: &["std::process::Command", "std::fs::write", "File::create", "tokio::process"],
        why: "the proxy is handed its descriptors and does nothing privileged",
    },
];

/// The only modules that may contain `unsafe`.
const UNSAFE_IN: &[&str] = &["crates/machine/src/sys", "crates/net/src/sys", "crates/init/src/sys"];

/// Checks one file.
pub(crate) fn check(file: &RustFile) -> Vec<Violation> {
    let mut violations = unsafe_code(file);
    for border in BORDERS.iter().filter(|border| file.path.starts_with(border.dir)) {
        violations.extend(crossings(border, file));
    }
    violations
}

fn crossings(border: &Border, file: &RustFile) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (number, line) in file.source.product_lines() {
        let word = words(line).map(|(_, word)| word).find(|word| border.words.contains(word));
        let path = border.paths.iter().copied().find(|path| line.contains(path));
        if let Some(found) = path.or(word) {
            violations.push(file.violation(number, format!("`{found}`: {}", border.why)));
        }
    }
    violations
}

fn unsafe_code(file: &RustFile) -> Vec<Violation> {
    let may = |dir: &&str| {
        let rest = file.path.strip_prefix(*dir);
        rest.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    if UNSAFE_IN.iter().any(may) {
        return Vec::new();
    }
    let text = "unsafe code belongs into machine::sys, net::sys or init::sys";
    let lines = file.source.code.lines().enumerate();
    let found = lines.filter(|(_, line)| words(line).any(|(_, word)| word == "unsafe"));
    found.map(|(at, _)| file.violation(at + 1, text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::File;

    fn found(path: &str, text: &str) -> Vec<usize> {
        let file = RustFile::new(&File { path: path.to_owned(), text: text.to_owned() });
        check(&file).into_iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn core_may_not_read_the_clock() {
        assert_eq!(found("crates/core/src/a.rs", "//! Doc.\nuse std::time::Instant;\n"), [2]);
        assert!(found("crates/net/src/a.rs", "use std::time::Instant;\n").is_empty());
    }

    #[test]
    fn tests_and_comments_of_core_may_say_what_they_like() {
        let text = "// std::fs\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n";
        assert!(found("crates/core/src/a.rs", text).is_empty());
    }

    #[test]
    fn unsafe_is_for_the_three_modules() {
        assert_eq!(found("crates/machine/src/shim.rs", "unsafe { x() }\n"), [1]);
        assert!(found("crates/machine/src/sys.rs", "unsafe { x() }\n").is_empty());
        assert!(found("crates/init/src/sys/seccomp.rs", "unsafe { x() }\n").is_empty());
        assert_eq!(found("crates/machine/src/system.rs", "unsafe { x() }\n"), [1]);
    }

    #[test]
    fn the_proxy_starts_no_process() {
        assert_eq!(found("crates/proxy/src/a.rs", "Command::new(x)\n"), [1]);
    }
}
