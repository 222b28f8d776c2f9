// In place of Handlebars, which compiles templates with `new Function`: the stock page of a workflow fills in values
// between {{ and }}, and nothing else. Values are text by strangers.
"use strict";

window.Handlebars = {
  compile(template) {
    const marks = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
    const plain = (value) => String(value ?? "").replace(/[&<>"']/g, (mark) => marks[mark]);
    return (values) => template.replace(/\{\{(\w+)\}\}/g, (_, name) => plain(values[name]));
  },
};
