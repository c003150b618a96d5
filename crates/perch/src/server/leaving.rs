//! When a Machine with `auto_destroy` goes: with its program, or when somebody stops it. Sleep is no end (OQ-37): what
//! the proxy stops because nobody needs it, or the platform to make room, stays for whoever needs it next.

use perch_api::wire::Event;

/// Events that say what was asked of a run.
const ASKED: [&str; 7] = ["launch", "start", "stop", "suspend", "resume", "restart", "update"];

/// Whether the run that ended last was the end of its Machine; `newest` are its events, newest first.
pub(super) fn is_over(newest: &[Event]) -> bool {
    let mut events = newest.iter().skip_while(|event| event.kind != "exit");
    let Some(exit) = events.next() else { return false };
    let exit = exit.request.as_ref().and_then(|request| request.exit_event.as_ref());
    if !exit.is_some_and(|exit| exit.requested_stop) {
        return true;
    }
    let asked = events.find(|event| ASKED.contains(&event.kind.as_str()));
    let sleeps = |event: &Event| {
        matches!(event.kind.as_str(), "stop" | "suspend")
            && matches!(event.source.as_str(), "proxy" | "flyd")
    };
    !asked.is_some_and(sleeps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use perch_api::wire::{EventRequest, ExitEvent};

    fn event(kind: &str, source: &str) -> Event {
        Event { kind: kind.to_owned(), source: source.to_owned(), ..Event::default() }
    }

    fn exit(requested_stop: bool) -> Event {
        let exit_event = Some(ExitEvent { requested_stop, ..ExitEvent::default() });
        let request = Some(EventRequest { exit_event, ..EventRequest::default() });
        Event { request, ..event("exit", "flyd") }
    }

    /// What came before the exit, newest first.
    fn check(requested: bool, before: &[(&str, &str)], over: bool) {
        let before = before.iter().map(|(kind, source)| event(kind, source));
        let events: Vec<_> = [exit(requested)].into_iter().chain(before).collect();
        assert_eq!(is_over(&events), over, "{events:?}");
    }

    #[test]
    fn an_exit_and_a_stop_by_somebody_are_the_end_and_sleep_is_none() {
        check(false, &[("start", "flyd"), ("launch", "user")], true);
        check(false, &[("suspend", "proxy")], true);
        check(true, &[("stop", "user")], true);
        check(true, &[("stop", "machine")], true);
        check(true, &[("stop", "proxy"), ("start", "flyd")], false);
        check(true, &[("adopt", "flyd"), ("stop", "proxy")], false);
        check(true, &[("suspend", "proxy"), ("suspend", "proxy")], false);
        check(true, &[("stop", "flyd"), ("suspend", "proxy")], false);
        check(true, &[], true);
        assert!(!is_over(&[event("start", "flyd")]), "nothing has ended");
    }
}
