"""The template of the HTML report: markup and style, nothing that is fetched.

Owns how the page looks, in light and dark, wide and narrow. Leaves every word
on it to `words` and `html`. Kept as Python, so that no packaging can lose it.
"""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --page: #f6f7f9; --panel: #ffffff; --text: #1b1f24; --soft: #59636e; --line: #d9dee3; --good: #00694c;
        --bad: #a84300; --open: #7a5200; --pick: #e8f3fb; --code: #f0f2f4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --panel: #1d2125; --text: #e8eaed; --soft: #a3adb8; --line: #363d44; --good: #5fd3ae;
          --bad: #ff9d66; --open: #f2c14e; --pick: #1b3346; --code: #14171a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 24px 20px 48px; }
h1, h2, h3 { line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); }
h2 { font-size: 1.15rem; margin: 32px 0 12px; }
h3 { font-size: .95rem; }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; }
.verdict { margin-top: 10px; border-left: 5px solid var(--bad); }
.verdict.chosen { border-left-color: var(--good); }
.verdict.undecided { border-left-color: var(--open); }
.verdict .headline { font-size: 1.45rem; font-weight: 650; overflow-wrap: anywhere; }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 999px; padding: 1px 10px;
         font-size: .85rem; font-weight: 600; color: var(--open); margin-bottom: 8px; }
dl { display: grid; grid-template-columns: minmax(120px, max-content) 1fr; gap: 6px 18px; margin: 12px 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; padding: 0; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 8px; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap;
         vertical-align: top; }
td.wrap { white-space: normal; min-width: 170px; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; }
.num { text-align: right; }
tbody tr:last-child > * { border-bottom: 0; }
tr.chosen > * { background: var(--pick); font-weight: 600; }
.meets { color: var(--good); } .misses { color: var(--bad); } .undecided { color: var(--open); }
td.undecided, td.meets, td.misses { font-weight: 600; }
ul.notes { color: var(--soft); font-size: .88rem; padding-left: 20px; overflow-wrap: anywhere; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 16px; }
figure { margin: 0; min-width: 0; background: #ffffff; color: #1b1f24; border: 1px solid #d9dee3; border-radius: 10px;
         padding: 14px 16px; overflow-x: auto; }
figcaption { font-weight: 600; margin-bottom: 8px; }
figure svg { display: block; width: 100%; min-width: 480px; max-width: 720px; height: auto; margin: 0 auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 14px; overflow-x: auto;
      font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; }
@media (max-width: 600px) {
  main { padding: 16px 12px 32px; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 10px; }
  .panel { padding: 14px; } .scroll { padding: 0; }
}
@media print { body { background: #fff; } figure, .panel { break-inside: avoid; } }
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<section class="panel verdict {{ outcome }}" aria-label="The choice">
{% if synthetic %}
<div class="badge">synthetic weights</div>
{% endif %}
<div class="headline">{{ headline }}</div>
<dl>
{% for fact in choice %}
<dt>{{ fact.label }}</dt><dd>{{ fact.text }}</dd>
{% endfor %}
</dl>
</section>

<h2>What was measured</h2>
<section class="panel"><dl style="margin-top: 0">
{% for fact in header %}
<dt>{{ fact.label }}</dt><dd>{{ fact.text }}</dd>
{% endfor %}
</dl></section>

{% if charts %}
<h2>Charts</h2>
<section class="charts">
{% for caption, svg in charts %}
<figure tabindex="0"><figcaption>{{ caption }}</figcaption>{{ svg }}</figure>
{% endfor %}
</section>
{% endif %}

<h2>Plans{{ " (synthetic weights)" if synthetic }}</h2>
{% if table %}
<div class="panel scroll" role="region" aria-label="Table of plans" tabindex="0"><table>
<thead><tr>
{% for name in columns %}
<th scope="col" class="{{ kinds.get(name, "") }}">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for chosen, row in table %}
<tr{% if chosen %} class="chosen"{% endif %}>
{% for name in columns %}
<td class="{{ kinds.get(name, "") }} {{ flags.get(row[name], "") if name == "verdict" }}">{{ row[name] }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% else %}
<p>There are no plans.</p>
{% endif %}
<ul class="notes">
{% for note in footnotes %}
<li>{{ note }}</li>
{% endfor %}
</ul>

{% if reasons %}
<h2>{{ "Why this plan, and why not the others" if outcome == "chosen" else "Why, plan by plan" }}</h2>
<div class="panel scroll" role="region" aria-label="A reason for each plan" tabindex="0"><table>
<thead><tr><th scope="col">plan</th><th scope="col">verdict</th><th scope="col">why</th></tr></thead>
<tbody>
{% for plan, chosen, verdict, why in reasons %}
<tr{% if chosen %} class="chosen"{% endif %}>
<td>{{ plan }}</td>
<td class="{{ flags.get(verdict, "") }}">{{ verdict }}</td>
<td class="wrap">{{ why }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if conversions %}
<h2>Converted models</h2>
<div class="panel scroll" role="region" aria-label="Table of converted models" tabindex="0"><table>
<thead><tr>
{% for name in conversion_columns %}
<th scope="col" class="{{ "num" if name in conversion_numeric else "" }}">{{ name }}</th>
{% endfor %}
</tr></thead>
<tbody>
{% for row in conversions %}
<tr>
{% for name, text in zip(conversion_columns, row) %}
<td class="{{ "num" if name in conversion_numeric else "wrap" if loop.last else "" }}">{{ text }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% if recipe %}
<h2>The chosen plan without inferplan</h2>
<pre tabindex="0"><code>{{ recipe }}</code></pre>
{% endif %}
</main>
</body>
</html>
"""
