"""The page of the report, as a Jinja template. Everything put into it is escaped, and nothing in it runs."""

from __future__ import annotations

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; overflow-wrap: anywhere; }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.4rem; border-bottom: 1px solid #bbb; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
h3 + p { margin-top: .2rem; }
a { color: #0b4f8a; }
.wide { overflow-x: auto; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; margin: .6rem 0; }
caption { text-align: left; padding: .3rem 0; color: #333; }
th, td { padding: .22rem .55rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 18rem; }
thead th { border-bottom: 2px solid #777; background: #f4f4f4; }
figure { margin: 1rem 0; } figcaption { font-size: .85rem; color: #333; }
.picture { position: relative; } .picture img { display: block; width: 100%; height: auto; }
figure { max-width: 62rem; } figure.column { max-width: 29rem; }
.columns { display: grid; gap: 1rem; }
.columns { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.columns figure { margin: 0; }
.point { position: absolute; width: 11px; height: 11px; margin: -5.5px 0 0 -5.5px; border-radius: 50%; }
.point:hover, .point:focus { outline: 2px solid #000; z-index: 2; }
.point span { display: none; position: absolute; bottom: 14px; left: -4px; width: max-content; }
.point span { max-width: 15rem; padding: .3rem .5rem; font-size: .78rem; line-height: 1.35; }
.point span { color: #fff; background: #222; border-radius: 3px; white-space: pre-line; }
.point.back span { left: auto; right: -4px; }
.point.under span { bottom: auto; top: 14px; }
.point:hover span, .point:focus span { display: block; }
p + .runs { margin-top: -.8rem; font-size: .85rem; color: #333; }
.runs code { white-space: normal; font-size: .72rem; overflow-wrap: anywhere; }
details { margin: .4rem 0; } summary { cursor: pointer; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
nav ul { columns: 2; padding-left: 1.2rem; } code { font-size: .85em; }
@media (max-width: 40rem) { nav ul { columns: 1; } h1 { font-size: 1.35rem; } }
@media print { details > * { display: block; } .point { display: none; } }
</style>
</head>
<body>
{% macro runs(ids) -%}
<details class="runs"><summary>{{ ids | length }} run{{ "" if ids | length == 1 else "s" }}</summary>
<code>{{ ids | join(" ") }}</code></details>
{%- endmacro %}
{% macro table(block) -%}
{% set table = block.table %}
<div class="wide" tabindex="0" role="region" aria-label="{{ table.caption }}">
<table data-block="{{ block.key }}">
<caption>{{ table.caption }}</caption>
<thead><tr>{% for name in table.headers %}<th scope="col">{{ name }}</th>{% endfor %}
{%- if table.run_ids %}<th scope="col">run ids</th>{% endif %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}<td{% if cell | length > 32 %} class="long"{% endif %}>{{ cell }}</td>{% endfor %}
{%- if table.run_ids %}<td>{{ runs(table.run_ids[loop.index0]) }}</td>{% endif %}</tr>{% else %}
<tr><td colspan="{{ table.headers | length }}">nothing</td></tr>{% endfor %}
</tbody></table></div>
{%- endmacro %}
{% macro draw(block) -%}
{% if block.kind == "prose" %}
<div data-block="{{ block.key }}">{% for text in block.texts %}<p>{{ text }}</p>{% endfor %}</div>
{% elif block.kind == "pairs" %}
<dl data-block="{{ block.key }}">
{% for name, text in block.pairs %}<dt>{{ name }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
{% elif block.kind == "found" %}
<div data-block="{{ block.key }}"><h3>{{ block.finding.topic }}</h3>
<p>{{ block.finding.text }}</p>
{% if block.finding.run_ids %}{{ runs(block.finding.run_ids) }}{% endif %}</div>
{% elif block.kind == "said" %}
<details data-block="{{ block.key }}"><summary>{{ block.name }}: what can be said</summary>
<ul>{% for line in block.lines %}<li>{{ line }}</li>{% endfor %}</ul>
{{ runs(block.run_ids) }}</details>
{% elif block.kind == "shown" and block.folded %}
<details><summary>{{ block.folded }}</summary>{{ table(block) }}</details>
{% elif block.kind == "shown" %}
{{ table(block) }}
{% else %}
<figure data-block="{{ block.key }}"{% if block.column %} class="column"{% endif %}>
<div class="picture"><img src="data:image/png;base64,{{ block.data }}" alt="{{ block.alt }}">
{% for hover in block.hovers %}
<div class="point{{ hover.side }}" style="left:{{ hover.left }}%;top:{{ hover.top }}%" tabindex="-1"
 aria-hidden="true"><span>{{ hover.text }}</span></div>
{% endfor %}</div>
<figcaption>{{ block.caption }}</figcaption></figure>
{% endif %}
{%- endmacro %}
<header>
<h1>{{ title }}</h1>
<p>{{ question }}</p>
<p>{{ used }} of {{ total }} cells used. Numbers are computed from the runs whose ids stand beside them;
{{ verify }} computes them again.</p>
</header>
<nav aria-label="Contents"><ul>
{% for section in sections %}<li><a href="#{{ section.id }}">{{ section.title }}</a></li>{% endfor %}
</ul></nav>
<main>
{% for section in sections %}
<section aria-labelledby="{{ section.id }}"><h2 id="{{ section.id }}">{{ section.title }}</h2>
{% for group in section.groups %}{% if group | length > 1 %}<div class="columns">{% endif %}
{% for block in group %}{{ draw(block) }}{% endfor %}
{% if group | length > 1 %}</div>{% endif %}{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
