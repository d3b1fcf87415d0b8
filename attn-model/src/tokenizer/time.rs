//! Dates for templates that tell the model what day it is.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The current time, UTC, in the format of C's `strftime`; none for fields that are not known.
pub fn strftime_now(format: &str) -> Option<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    strftime(now.as_secs(), format)
}

/// Seconds since 1970 in a format.
fn strftime(seconds: u64, format: &str) -> Option<String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    // 1 January 1970 was a Thursday.
    let weekday = DAYS[((days + 3) % 7) as usize];
    let name = MONTHS[month as usize - 1];
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut field = rest.next()?;
        // `%-d` is without zeros in front.
        let bare = field == '-';
        if bare {
            field = rest.next()?;
        }
        let padded = |n: u64| if bare { n.to_string() } else { format!("{n:02}") };
        text.push_str(&match field {
            'Y' => year.to_string(),
            'y' => padded(year % 100),
            'm' => padded(month),
            'd' => padded(day),
            'H' => padded(hour),
            'I' => padded((hour + 11) % 12 + 1),
            'M' => padded(minute),
            'S' => padded(second),
            'p' => if hour < 12 { "AM" } else { "PM" }.into(),
            'B' => name.into(),
            'b' => name[..3].into(),
            'A' => weekday.into(),
            'a' => weekday[..3].into(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".into(),
            '%' => "%".into(),
            _ => return None,
        });
    }
    Some(text)
}

/// Year, month and day of the Gregorian calendar.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    // Four centuries are the calendar's period; what remains is few enough to count.
    year += 400 * (days / 146_097);
    days %= 146_097;
    loop {
        let length = if leap(year) { 366 } else { 365 };
        if days < length {
            break;
        }
        days -= length;
        year += 1;
    }
    let february = if leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let all = "%Y-%m-%d %H:%M:%S %a %A %b %B %y %-d %I %p %F %T %%";
        let text = strftime(951_827_696, all).unwrap();
        assert_eq!(
            text,
            "2000-02-29 12:34:56 Tue Tuesday Feb February 00 29 12 PM 2000-02-29 12:34:56 %"
        );
        assert_eq!(strftime(0, "%d %b %Y, %A").unwrap(), "01 Jan 1970, Thursday");
        assert_eq!(strftime(1_735_689_599, "%F").unwrap(), "2024-12-31");
        assert_eq!(strftime(0, "%Q"), None);
        assert_eq!(strftime(0, "%"), None);
    }
}
