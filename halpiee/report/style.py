"""The look of the page: one style sheet, colours as variables, dark where the reader's system is."""

__all__ = ["STYLE"]

STYLE = """
:root{--paper:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#5b6876;--line:#e2e6eb;--track:#eef1f4;
--dense:#8694a5;--pruned:#0b7a75;--predicted:#7aa7d9;--limit:#c2410c;--prune:#c0267e;--grow:#2f8a2f;
--init:#6b5bd2;
--good:#12743b;--good-bg:#dcf3e4;--bad:#a32020;--bad-bg:#fbe3e1;--accepted:#0b7a75}
@media (prefers-color-scheme:dark){:root{--paper:#10151b;--card:#182029;--ink:#e7ecf1;--soft:#9aa8b6;
--line:#2a3541;
--track:#232d38;--dense:#7b8b9c;--pruned:#36c2b4;--predicted:#7fb2ec;--limit:#fb923c;--prune:#f472b6;
--grow:#7ed37e;
--init:#a99bf5;--good:#8be3ad;--good-bg:#123524;--bad:#ffb1aa;--bad-bg:#43191a;--accepted:#36c2b4}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;
-webkit-text-size-adjust:100%;font-variant-numeric:tabular-nums}
main{max-width:1080px;margin:0 auto;padding:28px 20px 40px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .5rem;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:0 0 .35rem}
header p{margin:0 0 1rem;color:var(--soft)}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px 20px;
margin:0 0 16px;
min-width:0}
section>p{margin:0 0 .8rem;color:var(--soft);font-size:.9rem}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:16px;align-items:start;margin:0 0 16px}
.pair>div{display:flex;flex-direction:column;gap:16px;height:100%;min-width:0}
.pair section{margin:0;flex:1}
.badge{display:inline-block;border-radius:999px;padding:.1rem .7rem;margin-right:.6rem;font-weight:600;
font-size:.85rem}
.badge.good{color:var(--good);background:var(--good-bg)}
.badge.bad{color:var(--bad);background:var(--bad-bg)}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:0 0 16px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px;
min-width:0}
.tile span,.tile small{display:block;color:var(--soft);font-size:.85rem}
.tile strong{display:block;font-size:1.6rem;line-height:1.25;letter-spacing:-.02em}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.95rem}
th,td{padding:.42rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th[scope=row]{text-align:left;font-weight:500;padding-left:0}
thead th{color:var(--soft);font-weight:600;font-size:.85rem}
tbody tr:last-child>*{border-bottom:0}
td:nth-child(3){font-weight:600}
td:last-child,thead th:last-child{padding-right:0}
.bars{position:relative;font-size:.9rem}
.row{display:grid;grid-template-columns:9rem 1fr 6rem;gap:.8rem;align-items:center;padding:.14rem 0}
.name{color:var(--soft);overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.8rem}
.value{text-align:right;white-space:nowrap}
.track{position:relative;display:block;height:1.15rem;border-radius:4px;background:var(--track)}
.track.bare{background:none}
.fill,.whole,.part{display:block;height:100%;border-radius:4px}
.fill.dense{background:var(--dense)}.fill.predicted{background:var(--predicted)}
.fill.pruned{background:var(--pruned)}
.whole{background:var(--track);box-shadow:inset 0 0 0 1px var(--line)}.part{background:var(--pruned)}
.row.line{position:absolute;inset:0;pointer-events:none;padding:0}
.row.line .track{height:100%}
.budget{position:absolute;top:-3px;bottom:-3px;border-left:2px dashed var(--limit)}
.note{margin:.5rem 0 0!important;font-size:.85rem;color:var(--soft)}
.swatch{display:inline-block;width:1.2rem;border-top:2px dashed var(--limit);vertical-align:middle;
margin-right:.4rem}
.widths .track{height:.85rem}.widths .whole,.widths .part{border-radius:3px}
.widths{columns:2;column-gap:28px}.widths .row{break-inside:avoid;grid-template-columns:11rem 1fr 6.2rem}
.widths .name{white-space:normal;overflow-wrap:anywhere;line-height:1.25}
.over{position:absolute;inset:0 auto 0 0;border-radius:3px;background:var(--track);
box-shadow:inset 0 0 0 1px var(--line)}
.over.part{background:var(--pruned);box-shadow:none}
a{color:var(--pruned)}
figure{margin:0}section>figure{max-width:600px}
figcaption{display:flex;flex-wrap:wrap;gap:.15rem .9rem;font-size:.82rem;color:var(--soft);
margin:0 0 .3rem}
figcaption .y{font-weight:600;color:var(--ink)}
.key{display:inline-flex;align-items:center;gap:.3rem}
.key svg{width:22px;height:12px}
.chart{display:block;width:100%;height:auto}
.grid{stroke:var(--line);stroke-width:1}
.tick,.axis{fill:var(--soft);font-size:13px}
.end{text-anchor:end}.mid{text-anchor:middle}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke:currentColor}
.mark{fill:currentColor}
.line.dense,.mark.dense{color:var(--dense)}.line.pruned,.mark.pruned{color:var(--pruned)}
.line.predicted,.mark.predicted{color:var(--predicted)}
.line.limit{color:var(--limit);stroke-dasharray:6 4}
.mark.prune{color:var(--prune)}.mark.grow{color:var(--grow)}.mark.init,.mark.shrink{color:var(--init)}
.mark.target{color:var(--ink);opacity:.55}
.band.accepted{fill:var(--accepted);opacity:.13}
dl{margin:0;font-size:.9rem}
dl div{display:flex;justify-content:space-between;gap:1rem;padding:.22rem 0;
border-bottom:1px solid var(--line)}
dl div:last-child{border-bottom:0}
dt{color:var(--soft)}dd{margin:0;text-align:right;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:.82rem;margin-top:20px}
@media (max-width:760px){main{padding:18px 12px 28px}.pair{grid-template-columns:1fr}
.tiles{grid-template-columns:1fr 1fr}.tile strong{font-size:1.3rem}section{padding:14px}
.row{grid-template-columns:8.6rem 1fr 5rem;gap:.5rem}.widths{columns:1}
.widths .row{grid-template-columns:8.6rem 1fr 5.4rem}
.tick,.axis{font-size:17px}th,td{padding:.4rem .25rem;font-size:.85rem;white-space:normal}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""
