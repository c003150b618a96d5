//! The page docs/compat-commands.md: every command and flag of flyctl, and what it is here. Only tests build
//! this; `cargo x docs` runs them so that they write instead of compare.

use crate::answers::{self, Word};
use crate::args::Fly;
use crate::flyctl::{self, Flag, Tree};
use clap::{Arg, ArgAction, Command, CommandFactory};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Set by `cargo x docs`: write what is compared otherwise.
const WRITE: &str = "PERCH_WRITE_DOCS";
/// Commands that flyctl does not have, and what they do.
const OWN: [(&str, &str); 1] = [(
    "why",
    "who keeps Machines awake just now, or in how long they sleep and what forbids it, and who woke them; with `--events` the server's ledger",
)];
/// The same wherever flyctl has them.
const COMMON: [&str; 6] = ["app", "config", "json", "org", "region", "yes"];

const HEAD: &str = "\
# flyctl's commands and flags

Every command and flag of flyctl (v0.4.87), and what it is in Perch's `fly`. Written by `cargo x docs` from flyctl's tree
([flyctl.txt](../crates/cli/src/flyctl.txt)), our own definitions and [answers.txt](../crates/cli/src/answers.txt), where the words
are; a test fails while this page is not what they give.

**same**: as flyctl. **differs**: as said. **always**: accepted, because it is so anyway. **ignored**: accepted, and a note says that it has
no effect. **refused**: one line on stderr with these words, exit code 1, whatever follows. **ours**: flyctl does not have it.
Flags are the same where nothing else is said.

Said once: `--app`/`-a`, `--config`/`-c`, `--json`/`-j`, `--org`/`-o`, `--region`/`-r` and `--yes`/`-y` (`--auto-confirm`) are the same in each
command of ours that has them in flyctl; `--access-token`/`-t`, `--verbose`, `--debug` and `--help`/`-h` are in all. The token of `-t` is for
servers that are reached over TCP; `--verbose` and `--debug` change nothing.
`fly --version`/`-v` is `fly version`.
";

/// Compares a file of the repository with what it should be, or writes it.
pub(crate) fn check(path: &str, text: &str) {
    let path = root().join(path);
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("it can be made");
        std::fs::write(&path, text).expect("it can be written");
        return;
    }
    let is = std::fs::read_to_string(&path).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().display();
    assert!(is == text, "{name} is not current; run `cargo x docs` and look at the difference");
}

/// Removes what is written no more.
pub(crate) fn check_dir(dir: &str, names: &[String]) {
    for entry in std::fs::read_dir(root().join(dir)).expect("it is there").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if names.contains(&name) {
            continue;
        }
        assert!(std::env::var_os(WRITE).is_some(), "{name} is of no command; run `cargo x docs`");
        std::fs::remove_file(entry.path()).expect("it can be removed");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Our definitions and flyctl's side by side.
struct Both {
    ours: Command,
    tree: Tree,
}

impl Both {
    fn new() -> Self {
        let mut ours = Fly::command();
        ours.build();
        Self { ours, tree: Tree::read() }
    }

    fn ours(&self, path: &str) -> Option<&Command> {
        // flyctl has a command for each shell, we have an argument.
        let path = if path.starts_with("completion ") { "completion" } else { path };
        path.split(' ').try_fold(&self.ours, |at, name| at.find_subcommand(name))
    }

    fn page(&self) -> String {
        let mut page = HEAD.to_owned();
        let mut singles = Vec::new();
        for (path, _) in self.tree.iter().filter(|(path, _)| !path.contains(' ')) {
            let below: Vec<_> = self.below(path).collect();
            let alone = below == [path] && !matches!(path, "deploy" | "launch");
            match alone {
                true => singles.push(path),
                false => self.section(&mut page, path, &below),
            }
        }
        page.push_str("\n## Other commands\n\n");
        self.table(&mut page, &singles);
        page.push_str("\n## Commands of ours\n\n| Command | | |\n|---|---|---|\n");
        for (name, text) in OWN {
            writeln!(page, "| `{name}` | ours | {text} |").expect("a string takes everything");
        }
        page
    }

    /// A command and all below it that does something itself.
    fn below<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'static str> {
        let start = format!("{path} ");
        let is_group = |it: &str| {
            let start = format!("{it} ");
            self.tree.iter().any(|(path, _)| path.starts_with(&start))
        };
        let all = self.tree.iter().map(|(path, _)| path);
        let is_ours = |it: &str| self.ours(it).is_some_and(Command::has_subcommands);
        all.filter(move |it| *it == path || it.starts_with(&start))
            .filter(move |it| !is_group(it) || (self.has_flags(it) && !is_ours(it)))
    }

    fn has_flags(&self, path: &str) -> bool {
        let flags = self.tree.get(path).map(|it| it.flags.as_slice()).unwrap_or_default();
        !flags.is_empty() || matches!(path, "launch" | "version" | "dashboard" | "doctor")
    }

    fn section(&self, page: &mut String, path: &str, commands: &[&'static str]) {
        let aliases = self.aliases(path);
        write!(page, "\n## fly {path}{aliases}\n\n").expect("a string takes everything");
        self.table(page, commands);
    }

    /// Commands of ours one by one, then the refused ones by their answers.
    fn table(&self, page: &mut String, commands: &[&'static str]) {
        page.push_str("| Command | | Differences and flags |\n|---|---|---|\n");
        let mut rows: Vec<(String, Vec<String>)> = Vec::new();
        let (ours, others): (Vec<&str>, Vec<&str>) =
            commands.iter().partition(|path| self.ours(path).is_some());
        let ours = ours.into_iter().map(|path| (self.rows(path), self.name(path)));
        let others = others.into_iter().map(|path| {
            let answer = answers::of_command(path).filter(|it| it.word == Word::Refused);
            let text = answer.map_or("it may come later", |answer| answer.text);
            let name = format!("{}{}", self.name(path), self.flags_of_refused(path));
            (format!("refused | {} |\n", cell(text)), name)
        });
        for (rest, name) in ours.chain(others) {
            match rows.iter_mut().find(|(known, _)| *known == rest) {
                Some((_, names)) => names.push(name),
                None => rows.push((rest, vec![name])),
            }
        }
        for (rest, names) in rows {
            page.push_str(&format!("| {} | {rest}", names.join("; ")));
        }
    }

    /// What stands behind the name of a command of ours: itself, then its flags by what they are.
    fn rows(&self, path: &str) -> String {
        let answer = answers::of_command(path).expect("a test asks for it");
        let first = format!("{} | {} |\n", word(answer.word), cell(answer.text));
        let flags = self.flags(path).into_iter();
        let rows = flags.map(|(word, text)| format!("| | {word} | {text} |\n"));
        first + &rows.collect::<String>()
    }

    fn name(&self, path: &str) -> String {
        let hidden = if self.tree.is_hidden(path) { ", hidden" } else { "" };
        format!("`{path}`{}{hidden}", self.aliases(path))
    }

    fn aliases(&self, path: &str) -> String {
        let aliases = self.tree.get(path).map(|it| it.aliases.as_slice()).unwrap_or_default();
        match aliases.is_empty() {
            true => String::new(),
            false => format!(" (`{}`)", aliases.join("`, `")),
        }
    }

    fn flags_of_refused(&self, path: &str) -> String {
        let flags = self.tree.get(path).map(|it| it.flags.as_slice()).unwrap_or_default();
        let names: Vec<_> =
            flags.iter().filter(|it| !COMMON.contains(&it.name)).map(spelled).collect();
        if names.is_empty() { String::new() } else { format!(" {}", names.join(" ")) }
    }

    /// What the flags of a command of ours are, those with one answer together.
    fn flags(&self, path: &str) -> Vec<(&'static str, String)> {
        let ours = self.ours(path).expect("it is ours");
        let mut by_answer: BTreeMap<(usize, &str), Vec<String>> = BTreeMap::new();
        let theirs = self.tree.get(path).map(|it| it.flags.as_slice()).unwrap_or_default();
        for flag in theirs {
            let answer = answers::of_flag(path, flag.name);
            let known = argument(ours, flag.name).is_some();
            let (order, text) = match (known, answer) {
                (true, None) if COMMON.contains(&flag.name) => continue,
                (true, None) => (0, ""),
                (_, Some(answer)) => (answer.word as usize, answer.text),
                (false, None) => (Word::Refused as usize, "it may come later; leave it out"),
            };
            by_answer.entry((order, text)).or_default().push(spelled(flag));
        }
        for arg in ours.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_global_set()) {
            let name = arg.get_long().unwrap_or_default();
            let is_theirs = theirs.iter().any(|flag| flag.is_called(name)) || name == "help";
            if !is_theirs {
                by_answer.entry((9, "")).or_default().push(format!("`--{name}`"));
            }
        }
        let words = ["same", "differs", "always", "ignored", "refused"];
        let part = |((order, text), names): ((usize, &str), Vec<String>)| {
            let word = words.get(order).copied().unwrap_or("ours");
            let text = if text.is_empty() { String::new() } else { format!(": {}", cell(text)) };
            (word, format!("{}{text}", names.join(" ")))
        };
        by_answer.into_iter().map(part).collect()
    }
}

fn spelled(flag: &Flag) -> String {
    let aliases = flag.aliases.iter().map(|alias| {
        let dashes = if alias.len() == 1 { "-" } else { "--" };
        format!("/`{dashes}{alias}`")
    });
    let short = flag.short.map(|short| format!("/`-{short}`")).unwrap_or_default();
    format!("`--{}`{short}{}", flag.name, aliases.collect::<String>())
}

fn word(word: Word) -> &'static str {
    match word {
        Word::Same => "same",
        Word::Differs => "differs",
        Word::Always => "always",
        Word::Ignored => "ignored",
        Word::Refused => "refused",
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn argument<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| {
        let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
        longs.contains(&name) || arg.get_all_aliases().unwrap_or_default().contains(&name)
    })
}

#[test]
fn the_page_is_current() {
    check("docs/compat-commands.md", &Both::new().page());
}

#[test]
fn the_page_names_every_command_and_flag_of_flyctl() {
    let page = Both::new().page();
    for (path, command) in Tree::read().iter() {
        let group = Tree::read().iter().any(|(it, _)| it.starts_with(&format!("{path} ")));
        assert!(group || page.contains(&format!("`{path}`")), "{path} is missing");
        for flag in command.flags.iter().filter(|flag| !COMMON.contains(&flag.name)) {
            assert!(
                page.contains(&format!("`--{}`", flag.name)),
                "{path} --{} is missing",
                flag.name
            );
        }
    }
}

#[test]
fn every_command_of_ours_has_a_line() {
    let both = Both::new();
    let mut todo = vec![("".to_owned(), &both.ours)];
    while let Some((path, command)) = todo.pop() {
        let subs: Vec<_> = command.get_subcommands().filter(|it| it.get_name() != "help").collect();
        let is_own = OWN.iter().any(|(own, _)| *own == path);
        if subs.is_empty() && path != "completion" && !is_own {
            let has = answers::of_command(&path).is_some_and(|it| it.word != Word::Refused);
            assert!(has, "write a line `{path}: same` (or `differs …`) into answers.txt");
            assert!(both.tree.get(&path).is_some(), "flyctl has no `{path}`");
        }
        let name = |it: &Command| format!("{path} {}", it.get_name()).trim_start().to_owned();
        todo.extend(subs.into_iter().map(|it| (name(it), it)));
    }
}

#[test]
fn flags_of_ours_have_flyctls_shorthands_aliases_and_kinds() {
    let both = Both::new();
    let mut wrong = Vec::new();
    for (path, command) in both.tree.iter() {
        let Some(ours) = both.ours(path) else { continue };
        for alias in &command.aliases {
            if both.ours(&format!("{}{alias}", path.trim_end_matches(flyctl::last(path)))).is_none()
            {
                wrong.push(format!("{path} has no alias {alias}"));
            }
        }
        for flag in &command.flags {
            let Some(arg) = argument(ours, flag.name) else { continue };
            wrong.extend(
                differences(flag, arg)
                    .into_iter()
                    .map(|it| format!("{path} --{}: {it}", flag.name)),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn differences(flag: &Flag, arg: &Arg) -> Vec<String> {
    let mut wrong = Vec::new();
    let shorts = arg.get_all_short_aliases().unwrap_or_default();
    let has_short = |c: char| arg.get_short() == Some(c) || shorts.contains(&c);
    let mut need = |alias: &str| {
        let mut letters = alias.chars();
        let has = match (letters.next(), letters.next()) {
            (Some(c), None) => has_short(c),
            _ => arg.get_all_aliases().unwrap_or_default().contains(&alias),
        };
        if !has {
            wrong.push(format!("no alias {alias}"));
        }
    };
    flag.aliases.iter().for_each(|alias| need(alias));
    flag.short.into_iter().for_each(|short| need(short.encode_utf8(&mut [0; 4])));
    let bare = match arg.get_action() {
        ArgAction::Set | ArgAction::Append => arg.is_require_equals_set(),
        _ => true,
    };
    if bare == flag.takes_value {
        wrong.push("takes a value in one of the two only".to_owned());
    }
    wrong
}

#[test]
fn the_help_of_every_command_is_as_checked_in() {
    let both = Both::new();
    let mut names = Vec::new();
    let mut todo = vec![(Vec::new(), &both.ours)];
    while let Some((path, command)) = todo.pop() {
        let name = format!("{}.txt", crate::help::name(&path).replace(' ', "-"));
        check(
            &format!("crates/cli/tests/help/{name}"),
            &crate::help::text(&both.ours, &path, None),
        );
        names.push(name);
        for sub in command.get_subcommands().filter(|it| it.get_name() != "help") {
            todo.push(([path.as_slice(), &[sub.get_name().to_owned()]].concat(), sub));
        }
    }
    check_dir("crates/cli/tests/help", &names);
}
