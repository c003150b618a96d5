//! Questions to a person at a terminal, as flyctl's look and behave: a line of text, yes or no, one or
//! several of a list by arrows and by typing a part of it.
//!
//! The terminal is read byte by byte while a question stands, so that Ctrl-C ends the command at once
//! and silently; its settings come back whatever the answer is.

use crate::console::Console;
use crate::failure::{Failure, Outcome};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use std::collections::BTreeSet;
use std::fs::File;

/// Options shown at a time; the others come by moving on.
const PAGE: usize = 15;
/// The width when the terminal does not tell.
const COLUMNS: usize = 80;
/// More than any key sends at once.
const KEY_BYTES_MAX: usize = 64;

/// Asks for a line of text.
///
/// # Errors
/// As all questions: there is no terminal, or the user ended it.
pub(crate) fn line(console: &Console, message: &str, default: &str) -> Outcome<String> {
    let mut screen = Screen::open(console)?;
    let question = match default {
        "" => format!("? {message} "),
        default => format!("? {message} ({default}) "),
    };
    let mut text = String::new();
    loop {
        screen.show(&format!("{question}{text}"));
        match screen.key()? {
            Key::Enter => break,
            Key::Erase => drop(text.pop()),
            Key::Letter(letter) => text.push(letter),
            _ => {}
        }
    }
    let answer = if text.is_empty() { default.to_owned() } else { text.trim().to_owned() };
    screen.close(&format!("? {message} {answer}"));
    Ok(answer)
}

/// Asks for a yes or a no; Enter alone is no.
pub(crate) fn confirm(console: &Console, message: &str) -> Outcome<bool> {
    let mut screen = Screen::open(console)?;
    let mut text = String::new();
    let mut complaint = String::new();
    loop {
        screen.show(&format!("{complaint}? {message} (y/N) {text}"));
        match screen.key()? {
            Key::Erase => drop(text.pop()),
            Key::Letter(letter) => text.push(letter),
            Key::Enter => match yes_or_no(&text) {
                Some(answer) => {
                    let word = if answer { "Yes" } else { "No" };
                    screen.close(&format!("? {message} {word}"));
                    return Ok(answer);
                }
                None => {
                    complaint = format!(
                        "X Sorry, your reply was invalid: \"{text}\" is not a valid answer, please \
                         try again.\n"
                    );
                    text.clear();
                }
            },
            _ => {}
        }
    }
}

fn yes_or_no(text: &str) -> Option<bool> {
    match text.trim().to_lowercase().as_str() {
        "y" | "yes" => Some(true),
        "" | "n" | "no" => Some(false),
        _ => None,
    }
}

/// Asks for one of the options, which are not empty, and answers its place.
pub(crate) fn select(
    console: &Console,
    message: &str,
    default: usize,
    options: &[String],
) -> Outcome<usize> {
    let mut screen = Screen::open(console)?;
    let mut list = List { options, typed: String::new(), at: default };
    loop {
        let hint = "[Use arrows to move, type to filter]";
        let head = format!("? {message}{}  {hint}\n", list.filter());
        let mark = |here: bool, _: usize| if here { "> ".to_owned() } else { "  ".to_owned() };
        screen.show(&format!("{head}{}", list.page(&screen, mark)));
        match (screen.key()?, list.current()) {
            (Key::Enter, Some(chosen)) => {
                screen.close(&format!("? {message} {}", options[chosen]));
                return Ok(chosen);
            }
            (key, _) => list.take(key),
        }
    }
}

/// Asks for any of the options and answers their places in order.
pub(crate) fn select_many(
    console: &Console,
    message: &str,
    options: &[String],
) -> Outcome<Vec<usize>> {
    let mut screen = Screen::open(console)?;
    let mut list = List { options, typed: String::new(), at: 0 };
    let mut chosen = BTreeSet::new();
    loop {
        let hint = "[Use arrows to move, space to select, <right> to all, <left> to none, type to \
                    filter]";
        let head = format!("? {message}{}  {hint}\n", list.filter());
        let mark = |here: bool, option: usize| {
            let arrow = if here { ">" } else { " " };
            let mark = if chosen.contains(&option) { "[x]" } else { "[ ]" };
            format!("{arrow} {mark}  ")
        };
        screen.show(&format!("{head}{}", list.page(&screen, mark)));
        match (screen.key()?, list.current()) {
            (Key::Enter, _) => break,
            (Key::Right, _) => chosen.extend(0..options.len()),
            (Key::Left, _) => chosen.clear(),
            (Key::Letter(' '), Some(option)) => {
                if !chosen.remove(&option) {
                    chosen.insert(option);
                }
            }
            (key, _) => list.take(key),
        }
    }
    let names: Vec<_> = chosen.iter().map(|option| options[*option].as_str()).collect();
    screen.close(&format!("? {message} {}", names.join(", ")));
    Ok(chosen.into_iter().collect())
}

/// Options, what was typed to find one, and where the arrow stands among those that match.
struct List<'a> {
    options: &'a [String],
    typed: String,
    at: usize,
}

impl List<'_> {
    fn matching(&self) -> Vec<usize> {
        let typed = self.typed.to_lowercase();
        let fits = |option: &usize| self.options[*option].to_lowercase().contains(&typed);
        (0..self.options.len()).filter(fits).collect()
    }

    fn current(&self) -> Option<usize> {
        self.matching().get(self.at).copied()
    }

    fn filter(&self) -> String {
        if self.typed.is_empty() { String::new() } else { format!(" {}", self.typed) }
    }

    fn take(&mut self, key: Key) {
        let count = self.matching().len().max(1);
        match key {
            Key::Up => self.at = (self.at + count - 1) % count,
            Key::Down => self.at = (self.at + 1) % count,
            Key::Erase => {
                self.typed.pop();
                self.at = 0;
            }
            Key::Letter(letter) => {
                self.typed.push(letter);
                self.at = 0;
            }
            Key::Enter | Key::Left | Key::Right | Key::Other => {}
        }
    }

    /// The options around the arrow, one a line, cut to the terminal's width.
    fn page(&self, screen: &Screen<'_>, mark: impl Fn(bool, usize) -> String) -> String {
        let matching = self.matching();
        let from = self.at.saturating_sub(PAGE / 2).min(matching.len().saturating_sub(PAGE));
        let shown = matching.iter().enumerate().skip(from).take(PAGE);
        let line = |(place, option): (usize, &usize)| {
            let text = format!("{}{}", mark(place == self.at, *option), self.options[*option]);
            format!("{}\n", text.chars().take(screen.columns - 1).collect::<String>())
        };
        shown.map(line).collect()
    }
}

/// What a person pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Enter,
    Erase,
    Up,
    Down,
    Left,
    Right,
    Letter(char),
    Other,
}

/// The terminal while a question stands.
struct Screen<'c> {
    console: &'c Console,
    terminal: &'c File,
    before: Termios,
    columns: usize,
    /// Lines above the cursor that belong to the question.
    above: usize,
    /// Bytes that were read and not used yet.
    pending: Vec<u8>,
}

impl<'c> Screen<'c> {
    fn open(console: &'c Console) -> Outcome<Self> {
        let terminal = console.terminal().ok_or_else(|| Failure::new("prompt: non interactive"))?;
        let before = tcgetattr(terminal).map_err(unreadable)?;
        let mut raw = before.clone();
        raw.local_modes &=
            !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN);
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Now, &raw).map_err(unreadable)?;
        let columns = console.columns().unwrap_or(COLUMNS);
        Ok(Self { console, terminal, before, columns, above: 0, pending: Vec::new() })
    }

    /// Puts the text in the place of the one before; the cursor stays at its end.
    fn show(&mut self, text: &str) {
        self.erase();
        self.console.text(text);
        let rows = |line: &str| line.chars().count().saturating_sub(1) / self.columns;
        self.above = text.matches('\n').count() + text.split('\n').map(rows).sum::<usize>();
    }

    fn erase(&self) {
        let up = if self.above > 0 { format!("\x1b[{}A", self.above) } else { String::new() };
        self.console.text(&format!("\r{up}\x1b[J"));
    }

    /// Leaves the question with its answer as one line.
    fn close(self, text: &str) {
        self.erase();
        self.console.line(text);
    }

    /// The next key. Ctrl-C and the end of the input end the command.
    fn key(&mut self) -> Outcome<Key> {
        if self.pending.is_empty() {
            let mut buffer = [0; KEY_BYTES_MAX];
            let count = rustix::io::read(self.terminal, &mut buffer).map_err(unreadable)?;
            self.pending.extend(&buffer[..count]);
        }
        let Some((key, length)) = decode(&self.pending) else {
            return Err(Failure::interrupted());
        };
        self.pending.drain(..length);
        Ok(key)
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // A terminal that went away needs no settings.
        tcsetattr(self.terminal, OptionalActions::Now, &self.before).unwrap_or_default();
    }
}

fn unreadable(error: rustix::io::Errno) -> Failure {
    match error {
        // A signal came, or the terminal was hung up: nobody will answer.
        rustix::io::Errno::INTR | rustix::io::Errno::IO => Failure::interrupted(),
        error => Failure::from(std::io::Error::from(error)).context("could not read the terminal"),
    }
}

/// The first key in these bytes and its length; none when the user wants to end.
fn decode(bytes: &[u8]) -> Option<(Key, usize)> {
    let arrow = |letter: u8| match letter {
        b'A' => Key::Up,
        b'B' => Key::Down,
        b'C' => Key::Right,
        b'D' => Key::Left,
        _ => Key::Other,
    };
    match bytes {
        [] | [3 | 4, ..] => None,
        [b'\r' | b'\n', ..] => Some((Key::Enter, 1)),
        [8 | 127, ..] => Some((Key::Erase, 1)),
        [16, ..] => Some((Key::Up, 1)),
        [14 | b'\t', ..] => Some((Key::Down, 1)),
        [27, b'[' | b'O', letter, ..] => Some((arrow(*letter), 3)),
        [0..32, ..] => Some((Key::Other, 1)),
        bytes => Some(letter(bytes)),
    }
}

/// The first letter, of one to four bytes.
fn letter(bytes: &[u8]) -> (Key, usize) {
    let length = bytes.len().min(4);
    let of = |length: usize| std::str::from_utf8(&bytes[..length]).ok()?.chars().next();
    match (1..=length).find_map(of) {
        Some(letter) => (Key::Letter(letter), letter.len_utf8()),
        None => (Key::Other, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_and_ctrl_c_ends() {
        assert_eq!(decode(b"\x1b[Bx"), Some((Key::Down, 3)));
        assert_eq!(decode(b"\x1bOA"), Some((Key::Up, 3)));
        assert_eq!(decode("éa".as_bytes()), Some((Key::Letter('é'), 2)));
        assert_eq!(decode(b"\xff"), Some((Key::Other, 1)));
        assert_eq!(decode(b"\r"), Some((Key::Enter, 1)));
        for end in [b"\x03".as_slice(), b"\x04", b""] {
            assert_eq!(decode(end), None);
        }
    }

    #[test]
    fn only_words_for_yes_and_no_are_answers() {
        assert_eq!(yes_or_no("YES"), Some(true));
        assert_eq!(yes_or_no(""), Some(false));
        assert_eq!(yes_or_no("sure"), None);
    }

    #[test]
    fn the_arrow_goes_round_and_typing_finds() {
        let options = ["alpha", "beta", "gamma"].map(str::to_owned);
        let mut list = List { options: &options, typed: String::new(), at: 0 };
        list.take(Key::Up);
        assert_eq!(list.current(), Some(2));
        list.take(Key::Letter('B'));
        assert_eq!(list.current(), Some(1));
        list.take(Key::Letter('x'));
        assert_eq!(list.current(), None);
        list.take(Key::Erase);
        assert_eq!(list.current(), Some(1));
    }
}
