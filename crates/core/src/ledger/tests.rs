use super::*;

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(1_000_000 + micros)
}

fn marks(points: [Option<u64>; 4], ended: u64) -> Marks {
    let [asked, up, placed, connected] = points.map(|point| point.map(at));
    Marks { begun: at(100), asked, up, placed, connected, ended: at(ended) }
}

fn check(marks: Marks, expected: &[(&str, u64)]) {
    let phases = marks.phases();
    let seen: Vec<_> = phases.iter().map(|(p, d)| (p.as_str(), d.as_micros() as u64)).collect();
    assert_eq!(seen, expected);
    let sum: Duration = phases.iter().map(|(_, length)| *length).sum();
    assert_eq!(sum, marks.total(), "{marks:?}");
}

#[test]
fn the_phases_of_a_wait_add_up_to_it() {
    let whole = [("queue", 10), ("wake", 20), ("admit", 30), ("connect", 40), ("answer", 50)];
    check(marks([Some(110), Some(130), Some(160), Some(200)], 250), &whole);
}

#[test]
fn who_came_later_to_a_wake_has_only_its_rest() {
    let rest = [("wake", 30), ("admit", 30), ("connect", 40), ("answer", 50)];
    check(marks([Some(20), Some(130), Some(160), Some(200)], 250), &rest);
    check(marks([Some(20), Some(90), Some(160), Some(200)], 250), &rest_of_a_hold());
}

fn rest_of_a_hold() -> [(&'static str, u64); 3] {
    [("admit", 60), ("connect", 40), ("answer", 50)]
}

#[test]
fn what_was_not_measured_or_lies_behind_the_end_takes_no_time_of_its_own() {
    check(marks([None; 4], 250), &[("answer", 150)]);
    check(marks([Some(110), None, None, None], 250), &[("queue", 10), ("answer", 140)]);
    check(marks([Some(900), Some(901), None, None], 250), &[("queue", 150)]);
    check(marks([Some(900); 4], 50), &[]);
}

#[test]
fn a_ring_keeps_the_newest_and_its_numbers_only_grow() {
    let mut ring = Ring::new(3);
    assert_eq!((ring.last(), ring.after(0).count()), (0, 0));
    let lost = [10, 20, 20, 5, 30].map(|wish| ring.push(ring.number(wish), 'a', wish));
    assert_eq!(lost, [None, None, None, Some(10), Some(20)]);
    let all: Vec<_> = ring.after(0).map(|(number, wish)| (number, *wish)).collect();
    assert_eq!(all, [(21, 20), (22, 5), (30, 30)]);
    assert_eq!(ring.after(21).count(), 2);
    assert_eq!(ring.after(30).count(), 0);
    assert_eq!(ring.push(30, 'a', 99), None);
    assert_eq!(ring.last(), 30, "nothing comes twice");
}

#[test]
fn who_floods_a_full_ring_pushes_out_nobody_but_himself() {
    let mut ring = Ring::new(10);
    let mut number = 0;
    let mut push = |ring: &mut Ring<char, u64>, owner, count: u64| {
        for _ in 0..count {
            number += 1;
            ring.push(number, owner, number);
        }
    };
    push(&mut ring, 'a', 25);
    assert_eq!(ring.of(&'a').count(), 10, "alone he may have all");
    push(&mut ring, 'b', 3);
    push(&mut ring, 'c', 1);
    push(&mut ring, 'a', 1_000);
    let counts = ['a', 'b', 'c', 'd'].map(|owner| ring.of(&owner).count());
    assert_eq!(counts, [6, 3, 1, 0]);
    assert_eq!(ring.of(&'a').copied().collect::<Vec<_>>(), (1_024..=1_029).collect::<Vec<_>>());
    assert_eq!(ring.of(&'b').copied().collect::<Vec<_>>(), [26, 27, 28]);
    assert_eq!(ring.after(27).map(|(own, _)| own).take(3).collect::<Vec<_>>(), [28, 29, 1_024]);
    push(&mut ring, 'b', 1_000);
    let counts = ['a', 'b', 'c'].map(|owner| ring.of(&owner).count());
    assert_eq!(counts, [4, 5, 1], "of equals the one with the oldest loses");
    for owner in 'd'..='z' {
        push(&mut ring, owner, 1);
    }
    assert_eq!(ring.after(0).count(), 10);
    assert_eq!(ring.of(&'z').count(), 1, "the newest are there, however many owners there are");
}

#[test]
fn beyond_the_quota_records_are_counted() {
    let mut quota = Quota::new(2);
    assert_eq!([quota.pass(at(0)), quota.pass(at(1))], [Some(0), Some(0)]);
    assert_eq!([quota.pass(at(2)), quota.pass(at(999_999))], [None, None]);
    assert_eq!(quota.pass(at(1_000_000)), Some(2));
    assert_eq!(quota.pass(at(1_000_001)), Some(0));
}
