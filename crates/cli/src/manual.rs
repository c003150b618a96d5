//! Manual pages, made from the same definitions as the help.

use crate::args::Fly;
use clap::CommandFactory;

/// When what the pages say was last changed; a page has to have a date, and the same build the same pages.
const DATE: &str = "2026-11-21";

/// One page of section 1.
#[derive(Debug)]
pub struct Page {
    /// The command's whole name with dashes, such as `fly-apps-list`.
    pub name: String,
    /// The page in roff.
    pub text: String,
}

/// The pages of `fly` and all its commands.
pub fn of_fly() -> Vec<Page> {
    of(Fly::command())
}

/// The pages of a program and of its commands, its own first; hidden commands have none.
pub fn of(mut program: clap::Command) -> Vec<Page> {
    program.build();
    let mut pages = Vec::new();
    collect(&program, &mut pages);
    pages
}

fn collect(command: &clap::Command, pages: &mut Vec<Page>) {
    pages.push(page(command));
    let shown = command.get_subcommands().filter(|it| !it.is_hide_set() && it.get_name() != "help");
    shown.for_each(|it| collect(it, pages));
}

fn page(command: &clap::Command) -> Page {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let version = concat!("Perch ", env!("CARGO_PKG_VERSION"));
    let command = command.clone().disable_help_subcommand(true).mut_args(plain);
    let man = clap_mangen::Man::new(command).title(name.to_uppercase()).section("1");
    let man = man.date(DATE).source(version).manual("Perch");
    let mut bytes = Vec::new();
    man.render(&mut bytes).expect("a vector takes everything");
    Page { name, text: clean(&String::from_utf8_lossy(&bytes)) }
}

/// A boolean is a word, not a list of the values that it could have.
fn plain(arg: clap::Arg) -> clap::Arg {
    if !arg.is_require_equals_set() {
        return arg;
    }
    let default = arg.get_default_values() == ["true"];
    arg.value_name("true|false").hide_possible_values(true).hide_default_value(!default)
}

/// What formatters find fault with: breaks around breaks, spaces at the end of a line.
fn clean(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.retain(|line| !line.is_empty());
    lines.dedup_by(|next, line| *next == ".br" && *line == ".br");
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_of_its_own() {
        let pages = of_fly();
        let named = |name: &str| pages.iter().find(|page| page.name == name).map(|page| &page.text);
        assert!(named("fly").is_some_and(|text| text.contains("fly\\-apps(1)")));
        let list = named("fly-apps-list").expect("a page");
        assert!(list.contains(".TH FLY-APPS-LIST 1 ") && list.contains("List apps"), "{list}");
        assert!(named("fly-help").is_none());
    }

    #[test]
    fn a_boolean_is_no_list_of_its_values() {
        let pages = of_fly();
        assert!(pages.iter().all(|page| !page.text.contains("\ntrue\n")));
    }
}
