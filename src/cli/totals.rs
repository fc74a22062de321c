//! What a gateway did, as a table for people.

use std::fmt::Write as _;

use crate::metrics::{Snapshot, Traffic};

/// The widths of the columns: names, packets, bytes.
const NAME: usize = 26;
const PACKETS: usize = 18;
const BYTES: usize = 24;

/// The totals of a run.
pub(super) fn table(totals: &Snapshot) -> String {
    let mut text = String::new();
    row(&mut text, "totals", "packets", "bytes");
    let directions: [(&str, Traffic); 7] = [
        ("from inside", totals.inside_in),
        ("from outside", totals.outside_in),
        ("to outside", totals.outside_out),
        ("to inside", totals.inside_out),
        ("  replies delivered", totals.delivered),
        ("  errors passed on", totals.told),
        ("  reinjected", totals.reinjected),
    ];
    for (name, traffic) in directions {
        row(&mut text, name, &grouped(traffic.packets), &grouped(traffic.bytes));
    }
    if totals.sent_by_worker.len() > 1 {
        for (worker, packets) in totals.sent_by_worker.iter().enumerate() {
            row(&mut text, &format!("sent by worker {worker}"), &grouped(*packets), "");
        }
    }
    let dropped: u64 = totals.drops.iter().map(|(_, count)| count).sum();
    row(&mut text, "dropped", &grouped(dropped), "");
    for (name, count) in &totals.drops {
        row(&mut text, &format!("  {name}"), &grouped(*count), "");
    }
    let states = [
        ("requests refused", totals.refused.iter().sum()),
        ("errors sent to clients", totals.originated.packets),
        ("pieces cut off", totals.cut_off.packets),
        ("pieces lost", totals.cut_off_lost),
        ("mappings now", totals.mappings),
        ("mappings at most", totals.mappings_peak),
        ("echoes outstanding", totals.outstanding),
        ("echoes unanswered", totals.unanswered),
        ("echoes given up for others", totals.evicted.iter().sum()),
    ];
    for (name, count) in states {
        row(&mut text, name, &grouped(count), "");
    }
    text
}

fn row(text: &mut String, name: &str, packets: &str, bytes: &str) {
    let line = format!("{name:NAME$}{packets:>PACKETS$}{bytes:>BYTES$}");
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", line.trim_end());
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_stand_in_groups_of_three() {
        let table =
            [(0, "0"), (999, "999"), (1000, "1,000"), (123_456, "123,456"), (u64::MAX, "18,446,744,073,709,551,615")];
        for (number, expected) in table {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn every_number_has_its_line() {
        let traffic = |packets| Traffic { packets, bytes: packets * 100 };
        let totals = Snapshot {
            inside_in: traffic(1001),
            inside_out: traffic(1002),
            outside_in: traffic(1003),
            outside_out: traffic(1004),
            sent_by_worker: vec![1000, 4],
            delivered: traffic(1005),
            told: traffic(1007),
            reinjected: traffic(1006),
            drops: vec![("not_an_echo_reply".to_owned(), 7), ("late".to_owned(), 8)],
            refused: vec![4, 5],
            originated: traffic(8),
            not_originated: 0,
            cut_off: traffic(9),
            cut_off_lost: 1,
            mappings: 10,
            mappings_peak: 11,
            outstanding: 12,
            unanswered: 13,
            evicted: [14, 14, 14],
            ..Snapshot::default()
        };
        let expected = "\
totals                               packets                   bytes
from inside                            1,001                 100,100
from outside                           1,003                 100,300
to outside                             1,004                 100,400
to inside                              1,002                 100,200
  replies delivered                    1,005                 100,500
  errors passed on                     1,007                 100,700
  reinjected                           1,006                 100,600
sent by worker 0                       1,000
sent by worker 1                           4
dropped                                   15
  not_an_echo_reply                        7
  late                                     8
requests refused                           9
errors sent to clients                     8
pieces cut off                             9
pieces lost                                1
mappings now                              10
mappings at most                          11
echoes outstanding                        12
echoes unanswered                         13
echoes given up for others                42
";
        assert_eq!(table(&totals), expected);
    }
}
