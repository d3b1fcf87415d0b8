use super::Modifier;

impl Modifier {
    /// ALiBi, a bias that falls with the distance (Press, Smith and Lewis, 2022):
    /// `score - slopes[head] * |position - key|`. [`alibi_slopes`] makes the slopes of the paper.
    pub fn alibi(slopes: &[f32]) -> Modifier {
        let table = slopes.to_vec();
        Modifier::score("alibi", "return score - slope(i32(head)) * f32(abs(position - key));")
            .with_derivative("return 1.0;")
            .with_table("slope", slopes.to_vec())
            .with_host(move |score, at| {
                let distance = at.position.abs_diff(at.key as i64) as f64;
                score - clamped(&table, at.head as i64) * distance
            })
            .with_host_derivative(|_, _| 1.0)
    }

    /// A factor for each query: `score * factors[position]`, where a position beyond either end of
    /// the table takes the factor at that end.
    pub fn temperature(factors: &[f32]) -> Modifier {
        let (table, slopes) = (factors.to_vec(), factors.to_vec());
        Modifier::score("temperature", "return score * factor(position);")
            .with_derivative("return factor(position);")
            .with_table("factor", factors.to_vec())
            .with_host(move |score, at| score * clamped(&table, at.position))
            .with_host_derivative(move |_, at| clamped(&slopes, at.position))
    }
}

/// The slopes of ALiBi for any number of heads. For a power of two, head `h` of `heads` has
/// `2^(-8 (h + 1) / heads)`; otherwise the largest power of two below comes first, followed by
/// every other slope of the next power of two, from its first on.
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let Some(log) = heads.checked_ilog2() else { return Vec::new() };
    let whole = 1_usize << log;
    let slope = |numerator: usize, of: f64| (-8.0 * numerator as f64 / of).exp2() as f32;
    let first = (1..=whole).map(|h| slope(h, whole as f64));
    let between = (0..heads - whole).map(|h| slope(2 * h + 1, 2.0 * whole as f64));
    first.chain(between).collect()
}

/// Element `index`, moved into the table; 0 for an empty table, which no call accepts.
fn clamped(table: &[f32], index: i64) -> f64 {
    let last = table.len().saturating_sub(1);
    let index = usize::try_from(index).unwrap_or(0).min(last);
    table.get(index).copied().map_or(0.0, f64::from)
}
